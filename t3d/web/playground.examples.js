/* Prompts to start from. Adds `examples` to the global `T3D`. */
"use strict";
{
  /* Test problems of the built-in task: `t3d.tasks.story.examples.make("test", 12, seed=7)`. */
  const STORY = [
    "Rosa has 40 stones. A friend takes 14 of them. She finds 9 stones. She doubles her stones. A friend gives her 15 more. How many stones does she have in the end?",
    "Sam has 16 cups. He buys 7 cups. A friend gives him 7 more. How many cups does Sam have now?",
    "At first, Ben has 19 pins. He gets 12 more. He sells 10 of them. The number of pins triples. A friend gives him 12 more. How many pins are there now?",
    "There are 37 stamps in the bag of Lily. She sells 20 of them. The number of stamps doubles. She doubles her stamps. How many stamps does Lily have now?",
    "Eva starts with 4 nuts. She sells 2 of them. She buys 18 nuts. She finds 9 nuts. A friend takes 15 of them. How many nuts does Eva have now?",
    "Lily starts with 40 rings. She doubles her rings. She finds 2 rings. She finds 17 rings. She loses 18. How many rings does Lily have now?",
  ];
  const GENERAL = [
    "A shop sells pens at 3 for 2 euros. How much do 12 pens cost? Think step by step.",
    "Write a Python function that returns the longest word of a sentence.",
    "Explain in two sentences why the sky is blue.",
  ];

  const isStory = (model) => model.startsWith("story-");

  /** The examples that fit a model of this name. */
  const of = (model) => (isStory(model) ? STORY : GENERAL);

  /** An example as the model sees it where nothing is rendered; the story models know only one form. */
  const raw = (example, model) => (isStory(model) ? `Question: ${example}\nAnswer:` : example);

  T3D.examples = { of, raw };
}
