"""Docstrings that say of several names at once what they are ("num_shards, num_finished: ..."), one entry a name."""

import re

from griffe import Extension, Object

JOINT = re.compile(r"^ {4}(?P<names>\w+(?:,\s+\w+)+):(?P<text>\s.*(?:\n {5,}.*)*)", re.MULTILINE)


class JointNames(Extension):
    """Writes them out before the API reference reads them."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = written_out(obj.docstring.value)


def written_out(docstring: str) -> str:
    """A cleaned docstring with an entry for each of the names."""
    return JOINT.sub(
        lambda found: "\n".join(f"    {name}:{found['text']}" for name in re.split(r",\s+", found["names"])), docstring
    )
