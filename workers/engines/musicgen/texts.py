"""Prompts as a model reads them, each encoded once as long as it is asked for again."""

from collections import OrderedDict
from typing import Any, Final

import torch
from msgspec import Struct

from workers.engines.reading import PROMPT_TOKENS

REMEMBERED: Final = 64


class Text(Struct, frozen=True, eq=False):
    """The hidden states of a prompt, `[tokens, hidden]`. A melody model has them in `lead` `[2, steps, hidden]`, behind
    those of a melody, which here is none; its second half is that without text.
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
        if not self._is_melody:
            return 0
        melody: int = self._network.config.chroma_length
        return melody + PROMPT_TOKENS

    @property
    def _is_melody(self) -> bool:
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
        if self._is_melody:
            lead = torch.stack([torch.cat([self._silence(), each]) for each in (states, torch.zeros_like(states))])
            text = Text(states.new_zeros(0, states.shape[1]).to(network.decoder.dtype), lead.to(network.decoder.dtype))
        self._known[prompt] = text
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return text

    def _silence(self) -> torch.Tensor:
        """No melody, `[steps, hidden]`: the library says so by the first of the twelve tones alone."""
        config, device = self._network.config, self._network.device
        chroma = torch.zeros(config.chroma_length, config.num_chroma, device=device)
        chroma[:, 0] = 1
        if config.num_chroma != self._network.decoder.config.hidden_size:
            chroma = self._network.audio_enc_to_dec_proj(chroma)
        return chroma
