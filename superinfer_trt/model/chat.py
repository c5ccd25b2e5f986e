"""Chat templates: a conversation to one prompt string, under Hugging Face's conventions.

Those are trim_blocks and lstrip_blocks, `raise_exception`, `tojson`, loop controls, generation blocks,
`bos_token` and `eos_token`, and `add_generation_prompt`. A template is data from a model file: it runs in
a sandbox with bounded work (chat_sandbox.py). Reads no clock: `strftime_now` is defined only when
injected. A template may be rendered from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jinja2 import Template
from jinja2.exceptions import TemplateError

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.model.chat_sandbox import ChatEnvironment, metered

RENDERED_CHARACTERS_MAX = 4_000_000
SOURCE_CHARACTERS_MAX = 200_000
ROLE_CHARACTERS_MAX = 64


class ChatTemplate:
    """A compiled chat template with the special tokens that it may name.

    A model whose template cannot be compiled is still a model: `trouble` says why, and only conversations
    are refused.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        strftime_now: Callable[[str], str] | None = None,
    ) -> None:
        """`special_tokens` by Hugging Face's names (bos_token, ...)."""
        self.source = source
        self.special_tokens = dict(special_tokens)
        self._template: Template | None = None
        self.trouble = ""
        if len(source) > SOURCE_CHARACTERS_MAX:
            self.trouble = f"{len(source)} characters, at most {SOURCE_CHARACTERS_MAX} are allowed"
            return
        environment = ChatEnvironment()
        if strftime_now is not None:
            environment.globals["strftime_now"] = strftime_now
        try:
            with metered():
                self._template = environment.from_string(source)
        except (TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            self.trouble = _line(error)

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool = True) -> str:
        """The prompt of `messages` ({"role", "content"} each). Raises Refused, field `messages`."""
        if self._template is None:
            message = f"the model's chat template cannot be used: {self.trouble}"
            raise Refused(RefusalCode.UNSUPPORTED, "messages", message)
        given = [_message(index, message) for index, message in enumerate(messages)]
        if not given:
            raise _refused("at least one message is required")
        variables = {**self.special_tokens, "messages": given, "add_generation_prompt": generation_prompt}
        variables |= {"tools": None, "documents": None}  # templates ask whether they are none
        try:
            with metered():
                return _joined(self._template, variables)
        except Refused:
            raise
        except (TemplateError, RecursionError) as error:
            raise _refused(f"the chat template refuses: {_line(error)}") from error
        except Exception as error:  # its expressions may fail in any way Python's can
            raise _refused(f"the chat template fails: {type(error).__name__}: {_line(error)}") from error


def _joined(template: Template, variables: Mapping[str, object]) -> str:
    parts: list[str] = []
    length = 0
    for part in template.generate(variables):
        length += len(part)
        if length > RENDERED_CHARACTERS_MAX:
            raise _refused(f"the chat template renders more than {RENDERED_CHARACTERS_MAX} characters")
        parts.append(part)
    return "".join(parts)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _refused(message: str) -> Refused:
    return Refused(RefusalCode.INVALID, "messages", message)


def _message(index: int, message: Mapping[str, str]) -> dict[str, str]:
    for field in ("role", "content"):
        if not isinstance(message.get(field), str):
            raise _refused(f"message {index} has no text field {field!r}")
    if len(message["role"]) > ROLE_CHARACTERS_MAX:
        raise _refused(f"the role of message {index} is longer than {ROLE_CHARACTERS_MAX} characters")
    return dict(message)
