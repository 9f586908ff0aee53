"""The teacher's voice: flite's `slt` (16 kHz), through the C library of Debian's package.

Needed for training and for the teacher's row of an evaluation, never when the app runs.
Knows nothing of codes or models.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

SAMPLE_RATE = 16_000
_NAMES = (  # flite's, for American English; "pau" is a pause
    "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th "
    "uh uw v w y z zh"
)
PHONES = tuple(_NAMES.split())
_LIBRARIES = ("libflite.so.1", "libflite_usenglish.so.1", "libflite_cmulex.so.1")
_VOICE = "libflite_cmu_us_slt.so.1"
_START = b"daughter1.R:SylStructure.daughter1.daughter1.R:Segment.p.end"
_END = b"daughtern.R:SylStructure.daughtern.daughtern.R:Segment.end"
REMEDY = "flite is not installed: `apt-get install libflite1` (it is needed for the teacher only)"


@dataclass(frozen=True)
class Utterance:
    """What the teacher said: int16 mono (n,), and the time in seconds of each word, (words, 2).

    `phones` are indices into PHONES, int8 (p,), and `phone_ends` the times at which each ends.
    """

    samples: np.ndarray
    words: np.ndarray
    phones: np.ndarray
    phone_ends: np.ndarray


class _Wave(ctypes.Structure):
    """`cst_wave` of flite's cst_wave.h."""

    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


@cache
def _flite() -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    try:
        base, *_ = [ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL) for name in _LIBRARIES]
        voice = ctypes.CDLL(_VOICE, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeError(REMEDY) from error
    base.flite_init()
    pointer = ctypes.c_void_p
    voice.register_cmu_us_slt.restype = pointer
    for name, result, arguments in (
        ("flite_synth_text", pointer, [ctypes.c_char_p, pointer]),
        ("utt_wave", ctypes.POINTER(_Wave), [pointer]),
        ("utt_relation", pointer, [pointer, ctypes.c_char_p]),
        ("relation_head", pointer, [pointer]),
        ("item_next", pointer, [pointer]),
        ("ffeature_float", ctypes.c_float, [pointer, ctypes.c_char_p]),
        ("ffeature_string", ctypes.c_char_p, [pointer, ctypes.c_char_p]),
        ("delete_utterance", None, [pointer]),
        ("lex_lookup", pointer, [pointer, ctypes.c_char_p, ctypes.c_char_p, pointer]),
        ("val_car", pointer, [pointer]),
        ("val_cdr", pointer, [pointer]),
        ("val_string", ctypes.c_char_p, [pointer]),
        ("delete_val", None, [pointer]),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    return base, pointer(voice.register_cmu_us_slt(None))


def available() -> bool:
    """Whether the teacher can speak on this machine."""
    try:
        _flite()
    except RuntimeError:
        return False
    return True


def speak(text: str) -> Utterance:
    """The teacher says `text`; a time pair for each white-space word, and its phones.

    The same samples whenever it is asked: flite draws its noise from C's `rand`, which is seeded
    by the text. Raises RuntimeError, with the remedy, where flite is not installed.
    """
    library, voice = _flite()
    ctypes.CDLL(None).srand(zlib.crc32(text.encode()))
    utterance = library.flite_synth_text(text.encode("ascii", "ignore"), voice)
    wave = library.utt_wave(utterance).contents
    if wave.sample_rate != SAMPLE_RATE or wave.num_channels != 1:
        raise RuntimeError(f"flite gave {wave.sample_rate} Hz, {wave.num_channels} channels")
    samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).copy()
    times = [
        [library.ffeature_float(item, path) for path in (_START, _END)]
        for item in _items(library, utterance, b"Token")
    ]
    phones = [
        (PHONES.index(library.ffeature_string(item, b"name").decode()),
         library.ffeature_float(item, b"end"))
        for item in _items(library, utterance, b"Segment")
    ]  # fmt: skip
    library.delete_utterance(utterance)
    names, ends = zip(*phones, strict=True) if phones else ((), ())
    return Utterance(
        samples,
        np.array(times, np.float32).reshape(-1, 2),
        np.array(names, np.int8),
        np.array(ends, np.float32),
    )


def _items(library: ctypes.CDLL, utterance: int, relation: bytes) -> Iterator[int]:
    """The items of one of an utterance's relations, in order."""
    item = library.relation_head(library.utt_relation(utterance, relation))
    while item:
        yield item
        item = library.item_next(item)


@cache
def _lexicon() -> ctypes.c_void_p:
    lexicon = ctypes.CDLL(_LIBRARIES[-1]).cmu_lex_init
    lexicon.restype = ctypes.c_void_p
    return ctypes.c_void_p(lexicon())


def pronounce(word: str) -> list[int]:
    """The phones (indices into PHONES) of a word alone, by the CMU lexicon or flite's rules."""
    library, _ = _flite()
    head = cell = library.lex_lookup(_lexicon(), word.encode("ascii", "ignore"), None, None)
    phones = []
    while cell:
        name = library.val_string(library.val_car(cell)).decode().rstrip("012")  # stress
        phones.append(PHONES.index(name))
        cell = library.val_cdr(cell)
    library.delete_val(head)
    return phones
