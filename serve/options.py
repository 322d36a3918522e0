"""What may be chosen of a server; from here come the options of `safetykit serve` and their help."""

from __future__ import annotations

from pathlib import Path

from ..adapters.settings import POSITIVE, setting
from ..export.options import SwapOptions
from ..toolkit.evaluation.options import TRUNCATE, PromptOptions


class ServeOptions(PromptOptions, SwapOptions):
    """Where it listens, who may ask, how much, and what a request may choose."""

    host: str = setting("127.0.0.1", "Address to listen at; others than this machine's own need API keys.")
    port: int = setting(8000, "Port to listen at; 0 takes a free one.", ge=0, le=65535)
    name: str | None = setting(None, "What clients call the model.", shown="the folder's name")
    api_key_file: Path | None = setting(
        None, "File of accepted API keys, one a line; SAFETYKIT_API_KEYS adds to them.", shown="none"
    )
    allow_anonymous: bool = setting(False, "Answer other machines without API keys.")
    max_batch: int = setting(8, "Answers that are decoded together.", ge=1)
    max_queue: int = setting(64, "Answers that may wait; more are refused (429).", ge=1)
    threads: int | None = setting(
        None,
        "Threads that compute on the CPU; what reads requests and writes answers needs some time of the cores, too.",
        shown="one for each core",
        ge=1,
    )
    truncate: bool = setting(False, TRUNCATE)
    max_new_tokens: int = setting(512, "Longest answer, in tokens; a request that asks for more is refused.", ge=1)
    max_pictures: int = setting(8, "Pictures of a request.", ge=0)
    max_pixels: int = setting(2**24, "Pixels of a request's pictures together.", ge=1)
    max_body: int = setting(2**25, "Bytes of a request.", ge=1024)
    timeout: float = setting(120.0, "Seconds in which a request is answered, or fails (504).", gt=0)
    drain: float = setting(30.0, "Seconds that answers may still take after SIGTERM.", ge=0)
    adapters: tuple[str, ...] = setting(
        (), "NAME=FOLDER: an adapter that requests may choose; a hot-swap export; repeat for several.", option="adapter"
    )
    allow_off: bool = setting(False, "Let requests ask the model without its adapters; it takes its memory once more.")
    allow_strength: float | None = setting(
        None,
        "Let requests scale what adapters add, from 0 (nothing) over 1 (as fitted) to this; a hot-swap export.",
        shown="as fitted",
        gt=0,
    )
    allow_shadow: bool = setting(False, "Let requests ask for the risk alone: it is told, and nothing is refused.")
    canary: bool = setting(False, "Ask the requests recorded with the export first; serve only if all is as it was.")
    drift_window: int = setting(
        500, "Prompts of a window that is compared with the calibration; 0 compares nothing.", ge=0
    )
    drift_false_alarms: float = setting(
        0.01,
        "Probability of any false alarm of drift while the server runs.",
        acts={"drift_window": POSITIVE},
        gt=0,
        lt=1,
    )
    page: bool = setting(False, "Serve a page at / to try the model with; it asks with the key that is typed into it.")
    log_prompts: bool = setting(False, "Write prompts and answers to the log.")
