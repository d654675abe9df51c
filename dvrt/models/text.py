"""Text to token ids and back, as the checkpoint's own tokenizer does it. transformers' work, thinly
wrapped: importing it (and torch with it, seconds) waits until a tokenizer is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvrt.errors import ModelError, RequestRejected
from dvrt.models.detokenizers import make_detokenizer
from dvrt.models.text_stream import TextStream as TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
"""Where tokenizers keep their vocabulary; the first that a checkpoint has is named in errors."""


class TextCodec:
    """A checkpoint's tokenizer. Its methods may be called from several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._n_ids = max(tokenizer.get_vocab().values(), default=-1) + 1
        self._beginning = make_detokenizer(_rust_tokenizer(tokenizer), self.decode)

    @classmethod
    def load(cls, directory: Path) -> TextCodec | None:
        """The tokenizer in ``directory``, or None where there is none. Never downloads, never runs
        a checkpoint's own code. Blocks for seconds: the first call imports torch.

        Raises ModelError naming the file for a damaged tokenizer, or a configuration that stands
        before it.
        """
        files = [directory / name for name in VOCABULARY_FILES if (directory / name).is_file()]
        if not files:
            return None
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
            tokenizer.encode("")  # resets truncation and padding, which threads must not do
            return cls(tokenizer)
        except Exception as error:
            raise ModelError(_fault(directory, files[0], error)) from error

    def __repr__(self) -> str:
        return f"<TextCodec {type(self._tokenizer).__name__}, {self._n_ids} ids>"

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        """``text`` as token ids, with the special tokens that the tokenizer adds to a prompt.

        Raises RequestRejected for text that is not Unicode (lone surrogates).
        """
        _check_unicode(text, param="prompt")
        return list(self._tokenizer.encode(text, verbose=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens; invalid UTF-8 as replacement characters.

        Ids beyond the vocabulary, which padded checkpoints can draw, have no text.
        """
        known = [token_id for token_id in ids if token_id < self._n_ids]
        return str(
            self._tokenizer.decode(
                known, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def token_bytes(self, token_id: int) -> bytes | None:
        """What a token adds to a text that has begun, be it part of a character; nothing for a
        special one, None where that is not known.
        """
        return self._beginning.token_bytes(token_id) if token_id < self._n_ids else b""

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation as the prompt for its next answer.

        Raises RequestRejected where the checkpoint has no chat template, and for what its template
        refuses.
        """
        if not self.has_chat_template:
            raise RequestRejected(
                "the model has no chat template; send a plain prompt", param="messages"
            )
        conversation = [dict(message) for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            raise RequestRejected(f"the chat template failed: {error}", param="messages") from error
        _check_unicode(str(text), param="messages")
        return list(self._tokenizer.encode(str(text), add_special_tokens=False, verbose=False))

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """The text of one new sample. Raises RequestRejected for an empty stop string."""
        return TextStream(self._beginning, stop)


def _rust_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokenizer under ``tokenizer``; None where that does not decode as it does."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not issubclass(kind, PreTrainedTokenizerFast):
        return None
    is_plain = (kind.decode, kind._decode) == (
        PreTrainedTokenizerFast.decode,
        PreTrainedTokenizerFast._decode,
    )
    return tokenizer.backend_tokenizer if is_plain else None


def _check_unicode(text: str, *, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestRejected(
            f"{param} is not valid Unicode: {error.reason}", param=param
        ) from error


def _fault(directory: Path, vocabulary: Path, error: Exception) -> str:
    """What is wrong with a tokenizer, beginning with the file at fault."""
    for file in (*sorted(directory.glob("*token*.json")), directory / "vocab.json"):
        flaw = _flaw(file) if file.is_file() else None
        if flaw is not None:
            return f"{file} {flaw}"
    error_of_config = _config_error(directory / "config.json")
    reason = " ".join(str(error_of_config or error).split())
    if error_of_config is not None:
        return f"{directory / 'config.json'}: {reason}"
    return f"{vocabulary} cannot be loaded as a tokenizer: {reason}"


def _config_error(file: Path) -> Exception | None:
    """Why transformers does not read the model's configuration, which its tokenizer begins with."""
    from transformers import AutoConfig

    if not file.is_file():
        return None
    try:
        AutoConfig.from_pretrained(str(file.parent), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        return error
    return None


def _flaw(file: Path) -> str | None:
    """Why a file is not one JSON object, or None."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}"
    return None if isinstance(value, dict) else "is not a JSON object"
