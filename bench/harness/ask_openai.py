"""The official client of OpenAI: whole and streamed, with pictures, refusals, errors, and more than the server holds.

python ask_openai.py JOB.json RESULT.json
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

ALL_AT_ONCE = 100  # more than a queue of 64 behind a batch of 8


def main() -> None:
    """Ask every record twice, then too much at once."""
    job = json.loads(Path(sys.argv[1]).read_text())
    client = openai.OpenAI(base_url=job["url"], api_key=job["key"], max_retries=0)
    fields = {"model": job["model"], "max_tokens": job["max_tokens"], "temperature": 0}
    whole, streamed, transcript = {}, {}, []
    for record in job["records"]:
        said = client.chat.completions.create(messages=messages(record), **fields)
        whole[record["id"]] = answer(said.choices[0].message.content, said.choices[0].finish_reason)
        pieces = list(client.chat.completions.create(messages=messages(record), stream=True, **fields))
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        streamed[record["id"]] = answer(text, pieces[-1].choices[0].finish_reason)
        more = {"reason": said.choices[0].finish_reason, "risk": said.safetykit["risk"]}
        asked = {"asked": record["prompt"], "picture": bool(record["image"])}
        transcript.append({**asked, **whole[record["id"]], **more})
    errors = {}
    for name, given in {"unknown model": {"model": "another"}, "unsupported": {"frequency_penalty": 1}}.items():
        try:
            client.chat.completions.create(**{**fields, "messages": messages(job["records"][0]), **given})
        except openai.APIStatusError as error:
            errors[name] = f"{type(error).__name__} {error.status_code}: {error.body['message']}"

    def ask(number: int) -> str:
        try:
            client.chat.completions.create(messages=messages(job["records"][number % len(job["records"])]), **fields)
            return "answered"
        except openai.RateLimitError as error:
            return f"429, Retry-After {error.response.headers['retry-after']}"

    with ThreadPoolExecutor(ALL_AT_ONCE) as pool:
        flood = list(pool.map(ask, range(2 * ALL_AT_ONCE)))
    both = {name: one for name, one in whole.items() if one == streamed[name]}
    counted = ", ".join(f"{flood.count(one)} × {one}" for one in sorted(set(flood)))
    told = "; ".join(errors.values())
    report = (
        f"{len(both)} of {len(whole)} the same whole and streamed; {2 * ALL_AT_ONCE} at once: {counted}; errors: {told}"
    )
    found = {"version": openai.__version__, "answers": whole, "report": report}
    Path(sys.argv[2]).write_text(json.dumps({**found, "transcript": transcript}))


def answer(text: str, reason: str) -> dict:
    """An answer as the benchmark compares it."""
    return {"text": text, "refused": reason == "content_filter"}


def messages(record: dict) -> list:
    """A record as a user's message."""
    parts = [{"type": "text", "text": record["prompt"]}]
    if record["image"]:
        parts.insert(0, {"type": "image_url", "image_url": {"url": record["image"]}})
    return [{"role": "user", "content": parts}]


main()
