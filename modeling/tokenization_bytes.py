"""A tokenizer whose tokens are the 256 bytes: id = byte, then pad, bos and eos.

It is a byte-level BPE without merges, so tokenizer.json says all of it and AutoTokenizer opens it without this file.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BYTES = 256
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}  # ids 256, 257, 258


def byte_letters() -> list[str]:
    """Return the printable character by which byte-level tokenizers write each byte, by byte.

    Bytes that are printable in Latin-1 stand for themselves; the others move up to code point 256 and beyond, in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return [chr(byte) if byte in printable else chr(BYTES + others.index(byte)) for byte in range(BYTES)]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of 259 entries: bytes 0-255 as their own ids, pad 256, bos 257, eos 258.

    Any text is the ids of its UTF-8 bytes and comes back unchanged, also one that spells "<eos>": markup is never read
    out of text (`split_special_tokens`); write the ids where you mean it. Ids that are not UTF-8 decode to the
    replacement character; `bytes(ids)` gives them back as they are. No token is put around a text.
    """
    entries = [*byte_letters(), *SPECIAL_TOKENS.values()]
    backend = Tokenizer(models.BPE(vocab={entry: index for index, entry in enumerate(entries)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: AddedToken(token, special=True, normalized=False) for name, token in SPECIAL_TOKENS.items()},
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
