"""How a question becomes the text that a model sees."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from t3d.config.base import Config


class PromptConfig(Config):
    """What `t3d.tasks.prompts.render` makes of a question; rollout, training and evaluation share it.

    What is left out here is the task's own; `t3d.tasks.prompts.resolve_form` fills it in.

    Attributes:
        style: chat (the tokenizer's chat template), plain ("Question: ...", and on the next line "Answer:"), raw (the
            question and nothing else); auto is the task's own style, and if that is auto too, chat where the tokenizer
            has a template, else plain.
        instruction: follows the question on a line of its own. None takes the task's own, which goes into chats only;
            "" is none.
        system: the system turn of a chat; None leaves it to the template.
        prefix: how the response begins before the model goes on; it ends the prompt, and "{prefix}" in it stands for
            the problem's own. None takes the task's, which is "{prefix}" as a rule; "" is none.
        template_options: further variables of the chat template, such as `enable_thinking: false`, on top of the
            task's own.
    """

    style: Literal["auto", "chat", "plain", "raw"] = "auto"
    instruction: str | None = None
    system: str | None = None
    prefix: str | None = None
    template_options: dict[str, Any] = Field(default_factory=dict)
