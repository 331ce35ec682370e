"""Prompts and melodies as a model reads them, a prompt encoded once as long as it is asked for again."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812
from msgspec import Struct

from workers import chroma
from workers.engines.reading import PROMPT_TOKENS

REMEMBERED: Final = 64


class Text(Struct, frozen=True, eq=False):
    """The hidden states of a prompt, `[tokens, hidden]`. A melody model has them in `lead` `[2, steps, hidden]`, behind
    those of a melody; its second half is that without either.
    """

    states: torch.Tensor
    lead: torch.Tensor | None = None


class Texts:
    def __init__(self, network: Any, tokenizer: Any) -> None:
        """`network` is a MusicgenForConditionalGeneration or MusicgenMelodyForConditionalGeneration, `tokenizer` the
        one of its text encoder.
        """
        self._network = network
        self._tokenizer = tokenizer
        self._known: OrderedDict[str, Text] = OrderedDict()

    @property
    def longest_lead(self) -> int:
        """The most steps before the first frame; 0 for models that attend to the text."""
        if not self.is_melody:
            return 0
        melody: int = self._network.config.chroma_length
        return melody + PROMPT_TOKENS

    @property
    def is_melody(self) -> bool:
        return hasattr(self._network.config, "chroma_length")

    def encoded(self, prompt: str) -> Text:
        if prompt in self._known:
            self._known.move_to_end(prompt)
            return self._known[prompt]
        network, device = self._network, self._network.device
        tokens = self._tokenizer(prompt, truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt").input_ids
        states = network.text_encoder(tokens.to(device)).last_hidden_state
        if hasattr(network, "enc_to_dec_proj"):
            states = network.enc_to_dec_proj(states)
        states = states[0]
        text = Text(states.to(network.decoder.dtype))
        if self.is_melody:
            lead = torch.stack([torch.cat([self._silence(), each]) for each in (states, torch.zeros_like(states))])
            text = Text(states.new_zeros(0, states.shape[1]).to(network.decoder.dtype), lead.to(network.decoder.dtype))
        self._known[prompt] = text
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return text

    def lead(self, text: Text, melody: Sequence[int], seconds: float) -> torch.Tensor | None:
        """That of the text, and of the melody from so many seconds on; at its end it begins anew."""
        if text.lead is None or not melody:
            return text.lead
        lead, steps = text.lead.clone(), self._network.config.chroma_length
        first = round(seconds * chroma.RATE / chroma.HOP)
        tones = [melody[(first + step) % len(melody)] for step in range(steps)]
        lead[0, :steps] = self._melody(tones).to(lead.dtype)
        return lead

    def _silence(self) -> torch.Tensor:
        """No melody: the library says so by the first of the twelve tones alone."""
        return self._melody([0] * self._network.config.chroma_length)

    def _melody(self, tones: Sequence[int]) -> torch.Tensor:
        """`[steps, hidden]`."""
        config, device = self._network.config, self._network.device
        found = F.one_hot(torch.tensor(tones, device=device), config.num_chroma).float()
        if config.num_chroma != self._network.decoder.config.hidden_size:
            found = self._network.audio_enc_to_dec_proj(found)
        return found
