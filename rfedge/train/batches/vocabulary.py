"""Words of the table top that a tokenizer should know whole, whether or not the demonstrations used them.

A tokenizer learnt from few instructions spells every other word in letters, and a plain request soon has more tokens
than the policy reads. Knowing the words costs rows of the embedding; what they mean is learnt from demonstrations alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rfedge.config import DecoderConfig
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.train.batches.wording import Grammar

_TEXT: Final = """
the a an it its one this that them then and with of from to at by for out off on in into onto inside over under
up down top bottom left right side front back center towards away upright
red blue pink green yellow white black small big
block blocks cube object thing drawer door cabinet slider sliding shelf compartment handle table desk
switch lever button light lights lamp bulb lightbulb led toggle knob
take get grab grasp grasped grip hold held pick lift raise put place drop lay set store stack stacked unstack
remove collapse push pull press slide sweep move shift turn rotate spin flip open close shut use activate deactivate
go falls so make bring drag hand degrees clockwise please
"""
TABLETOP_WORDS: Final = tuple(_TEXT.split())


def learn_tokenizer(
    instructions: Iterable[str], decoder: DecoderConfig, grammar: Grammar | None, other_words: Iterable[str] = ()
) -> InstructionTokenizer:
    """Learn the tokenizer of a policy that starts from nothing; with `grammar`, whose words it knows, in lower case."""
    corpus = (*instructions, *TABLETOP_WORDS, *other_words, *(() if grammar is None else grammar.words))
    return InstructionTokenizer.from_corpus(
        corpus, vocab_size=decoder.vocab_size, text_length=decoder.text_length, lowercase=grammar is not None
    )
