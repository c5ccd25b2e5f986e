"""Chat templates: a conversation to one prompt string, under Hugging Face's conventions.

Those are trim_blocks and lstrip_blocks, `raise_exception`, `tojson`, loop controls, generation blocks,
`bos_token` and `eos_token`, and `add_generation_prompt`. A template is data from a model file: it runs in
a sandbox with bounded work (chat_sandbox.py). Reads no clock: `strftime_now` is defined only when
injected. A template may be rendered from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jinja2.exceptions import TemplateError

from superinfer_trt.core.errors import ModelError, RefusalCode, Refused
from superinfer_trt.model.chat_sandbox import ChatEnvironment, metered

RENDERED_CHARACTERS_MAX = 4_000_000
SOURCE_CHARACTERS_MAX = 200_000
ROLE_CHARACTERS_MAX = 64


class ChatTemplate:
    """A compiled chat template with the special tokens that it may name."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        strftime_now: Callable[[str], str] | None = None,
    ) -> None:
        """`special_tokens` by Hugging Face's names (bos_token, ...). Raises ModelError for a bad source."""
        if len(source) > SOURCE_CHARACTERS_MAX:
            raise ModelError(f"chat template: {len(source)} characters, at most {SOURCE_CHARACTERS_MAX}")
        self._special = dict(special_tokens)
        environment = ChatEnvironment()
        if strftime_now is not None:
            environment.globals["strftime_now"] = strftime_now
        try:
            with metered():
                self._template = environment.from_string(source)
        except (TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise ModelError(f"chat template: does not compile: {_line(error)}") from error

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool = True) -> str:
        """The prompt of `messages` ({"role", "content"} each). Raises Refused, field `messages`."""
        given = [_message(index, message) for index, message in enumerate(messages)]
        if not given:
            raise _refused("at least one message is required")
        variables = {**self._special, "messages": given, "add_generation_prompt": generation_prompt}
        try:
            with metered():
                return self._joined(variables)
        except Refused:
            raise
        except (TemplateError, RecursionError) as error:
            raise _refused(f"the chat template refuses: {_line(error)}") from error
        except Exception as error:  # its expressions may fail in any way Python's can
            raise _refused(f"the chat template fails: {type(error).__name__}: {_line(error)}") from error

    def _joined(self, variables: Mapping[str, object]) -> str:
        parts: list[str] = []
        length = 0
        for part in self._template.generate(variables):
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
