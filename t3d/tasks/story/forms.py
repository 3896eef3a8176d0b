"""The sentences a story may be told in; every list holds equally good alternatives.

Fields: {name}, {he}, {He}, {him}, {his} for the person; {things} the noun; {n} a count; {k} an amount; {sum} the
arithmetic of a step, one of `SUMS`, where {a} is the count before the step and {c} the count after it.

The arithmetic too is told in many ways, with the same digits in other places: whoever fills in several digits at
once without having settled on one way writes a wrong number, and the answer is lost.
"""

QUESTION_STARTS = (
    "{name} has {n} {things}.",
    "{name} starts with {n} {things}.",
    "At first, {name} has {n} {things}.",
    "There are {n} {things} in the bag of {name}.",
)

QUESTION_EVENTS = {
    "gets": (
        "{He} gets {k} more.",
        "{He} finds {k} {things}.",
        "{He} buys {k} {things}.",
        "A friend gives {him} {k} more.",
    ),
    "loses": (
        "{He} loses {k}.",
        "{He} sells {k} of them.",
        "{He} gives away {k} {things}.",
        "A friend takes {k} of them.",
    ),
    "doubles": (
        "{He} doubles {his} {things}.",
        "The number of {things} doubles.",
        "Then {he} has twice as many.",
    ),
    "triples": (
        "{He} triples {his} {things}.",
        "The number of {things} triples.",
        "Then {he} has three times as many.",
    ),
    "halves": (
        "{He} sells half of them.",
        "{He} gives away half of {his} {things}.",
        "A friend takes half of the {things}.",
    ),
}

QUESTION_ENDS = (
    "How many {things} does {name} have now?",
    "How many {things} does {he} have in the end?",
    "How many {things} are there now?",
)

OPENINGS = (
    "Then",
    "Next,",
    "Later,",
    "Later on,",
    "After that,",
    "After a while,",
    "From there,",
    "At this point,",
    "In the next step,",
    "Now",
    "Soon after,",
    "Before long,",
)

STEPS = {
    "gets": (
        "{he} picks up {k} more",
        "{he} takes in {k} {things}",
        "{he} is given {k} more",
        "{he} comes by {k} {things}",
        "{he} brings home {k} more",
        "{he} runs into {k} {things}",
        "{he} makes room for {k} more",
        "{k} more come in",
        "{his} {things} grow by {k}",
        "we add {k} {things}",
        "there are {k} new {things}",
    ),
    "loses": (
        "{he} gives away {k}",
        "{he} hands out {k} {things}",
        "{he} parts with {k}",
        "{he} lets go of {k} {things}",
        "{he} gets rid of {k}",
        "{he} throws out {k} {things}",
        "{he} is down by {k}",
        "{k} {things} go away",
        "{k} of them are gone",
        "we take away {k}",
        "there are {k} fewer {things}",
    ),
    "doubles": (
        "{he} doubles {his} {things}",
        "{he} gets twice as many",
        "{his} {things} double in number",
        "the number doubles",
        "the number grows by two times",
        "there are two times as many",
        "there are twice as many {things}",
        "we take the number times two",
    ),
    "triples": (
        "{he} triples {his} {things}",
        "{he} gets three times as many",
        "{his} {things} triple in number",
        "the number triples",
        "the number grows by three times",
        "there are three times as many",
        "there is a triple number of {things}",
        "we take the number times three",
    ),
    "halves": (
        "{he} gives away half",
        "{he} gets rid of half",
        "{he} hands out half of them",
        "{he} parts with half of {his} {things}",
        "{he} lets go of half",
        "half of the {things} go away",
        "half of them are gone",
        "we take away half",
        "the number is cut in half",
    ),
}

RESULTS = (
    ", so {he} has {sum}.",
    ", so there are {sum} {things}.",
    ", which makes {sum}.",
    ", and that gives {sum} {things}.",
    ", and {he} ends up with {sum}.",
    ", for a total of {sum}.",
    ": {sum}.",
    ". That makes {sum}.",
    ". The new number is {sum}.",
)

SUMS = {
    "+": (
        "{a}+{k}={c}",
        "{k}+{a}={c}",
        "{c}={a}+{k}",
        "{c}={k}+{a}",
        "{c}, up from {a}",
        "{c} instead of {a}",
        "not {a} but {c}",
        "{a} plus {k}, or {c}",
    ),
    "-": (
        "{a}-{k}={c}",
        "{c}={a}-{k}",
        "{c}, down from {a}",
        "{c} instead of {a}",
        "not {a} but {c}",
        "{a} less {k}, or {c}",
        "{k} less than {a}, or {c}",
        "{c}, or {k} under {a}",
    ),
    "*": (
        "{a}*{k}={c}",
        "{k}*{a}={c}",
        "{c}={a}*{k}",
        "{c}={k}*{a}",
        "{c}, up from {a}",
        "{c} instead of {a}",
        "not {a} but {c}",
        "{k} times {a}, or {c}",
    ),
    "/": (
        "{a}/{k}={c}",
        "{c}={a}/{k}",
        "{c}, down from {a}",
        "{c} instead of {a}",
        "not {a} but {c}",
        "half of {a}, or {c}",
        "{c}, half of {a}",
        "{a} by {k}, or {c}",
    ),
}

ANSWER_ENDS = (
    "So {he} has {n} {things}.",
    "So the answer is {n}.",
    "In the end, there are {n}.",
    "In total, {name} has {n}.",
    "That makes {n} {things}.",
    "{name} ends up with {n}.",
    "The answer is {n} {things}.",
    "All in all, {he} has {n}.",
)
