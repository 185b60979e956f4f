"""Words to ids and back; text appears only when its bytes are complete.

The vocabulary: a few special tokens, every byte, a fixed list of English words (with the space
before them), and words cut in the middle of a character. So generated text is readable, any prompt
round-trips, and a stream carries UTF-8 that is split between two tokens, as a real one does.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

END, USER, ASSISTANT, SYSTEM, TOOL = range(5)
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
ROLE_TOKENS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM, "tool": TOOL}
FIRST_BYTE = 16
FIRST_WORD = FIRST_BYTE + 256

WORDS = tuple(
    """
    a about above across after again air all almost alone along always among and answer any are
    around as ask at away back be because become been before begin being below best better between
    big bird black blue boat body book both bottom bring brother build but by call came can care
    carry change city clean clear close cloud cold come could country course cover cross cut dark
    day deep did different do does done door down draw dream drive dry each early earth east easy
    eat end enough even evening ever every eye face fall family far farm fast father feel feet few
    field fill find fire first fish five floor flower fly follow food foot for forest form found
    four free friend from front full game garden gave get girl give glass go gold gone good grass
    great green ground grow had half hand happy hard has have he head hear heart heat heavy help
    her here high hill him his hold home horse hot hour house how hundred ice idea if in inside
    into iron is island it its just keep kind king knew know lake land language large last late
    laugh law lead leaf learn leave left less let letter life light like line list listen little
    live long look lost love low machine made main make man many map mark may me mean measure meet
    middle might mile mind minute moment money moon more morning most mother mountain mouth move
    much music must my name near need never new next night no north nose not note nothing now
    number ocean of off often old on once one only open or order other our out over own page paper
    part pass past path pattern people perhaps person picture piece place plain plan plane plant
    play point pole poor power problem question quick quiet rain ran reach read ready real red rest
    rich ride right ring rise river road rock room round run said sail same sand saw say school sea
    season second see seed seem send sentence set seven shade shape she ship shore short should
    show side sign silver simple since sing sister sit six size skin sky sleep slow small smile
    snow so soft some song soon sound south space speak spring stand star start state stay step
    still stone stood stop storm story street strong such summer sun sure surface table tail take
    talk tall teach tell ten than that the their them then there these they thing think this those
    though thought thousand three through time to together told tomorrow tone too took top touch
    toward town trade travel tree true try turn two under understand until up upon us use valley
    very village voice wait walk wall want war warm was watch water wave way we weather week well
    went were west what wheel when where which while white who whole why wide wild will wind
    window winter wish with without woman wonder wood word work world would write year yellow yes
    yet you young your
    """.split()  # noqa: SIM905  (a page of words, not of quotes)
)
PUNCTUATION = (",", ".", ";", ":", "!", "?", "\n", " —", "'s")
_SPLIT_TEXT = (" café", " naïve", " señor", " über", " 東京", " 漢字", " 🌊", " €")
SPLIT = tuple(text.encode() for text in _SPLIT_TEXT)
"""Each becomes two tokens, cut inside its last character."""

FIRST_PUNCTUATION = FIRST_WORD + len(WORDS)
FIRST_SPLIT = FIRST_PUNCTUATION + len(PUNCTUATION)
VOCAB_SIZE = FIRST_SPLIT + 2 * len(SPLIT)


def _vocabulary() -> list[bytes]:
    table = [b""] * FIRST_BYTE
    table += [bytes([value]) for value in range(256)]
    table += [b" " + word.encode() for word in WORDS]
    table += [mark.encode() for mark in PUNCTUATION]
    for whole in SPLIT:
        table += [whole[:-1], whole[-1:]]
    return table


BYTES: Sequence[bytes] = tuple(_vocabulary())
"""What each token adds to the text; special tokens add nothing."""
_BY_PIECE = {BYTES[FIRST_WORD + i].decode(): FIRST_WORD + i for i in range(len(WORDS))} | {
    mark: FIRST_PUNCTUATION + i for i, mark in enumerate(PUNCTUATION)
}
_PIECES = re.compile(r" ?[A-Za-z]+|'s| —|[^A-Za-z]")


def encode(text: str) -> list[int]:
    """Ids of `text`; `decode` gives the same text back. Special tokens in text stay text."""
    ids: list[int] = []
    for piece in _PIECES.findall(text):
        known = _BY_PIECE.get(piece)
        if known is not None:
            ids.append(known)
        else:
            # Lone surrogates come out of JSON escapes; vLLM's tokenizer replaces them too.
            ids.extend(FIRST_BYTE + value for value in piece.encode("utf-8", "replace"))
    return ids


def decode(ids: Iterable[int]) -> str:
    return b"".join(BYTES[i] for i in ids).decode("utf-8", "replace")


def render_chat(
    messages: Sequence[tuple[str, str]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> list[int]:
    """The chat template: `<|role|>text<|end|>` per message, then `<|assistant|>`."""
    ids: list[int] = []
    for index, (role, text) in enumerate(messages):
        ids.append(ROLE_TOKENS.get(role, USER))
        ids.extend(encode(text))
        if not (continue_final_message and index == len(messages) - 1):
            ids.append(END)
    if add_generation_prompt and not continue_final_message:
        ids.append(ASSISTANT)
    return ids


class Detokenizer:
    """Text of a growing list of tokens; an incomplete character waits for its rest.

    It is primed with the end of the prompt, so that a continuation that starts in the middle of a
    character yields that character.
    """

    __slots__ = ("_decoder",)

    def __init__(self, prompt: Sequence[int]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in prompt[-4:]:
            self._decoder.decode(BYTES[token])

    def feed(self, token: int) -> str:
        return self._decoder.decode(BYTES[token])
