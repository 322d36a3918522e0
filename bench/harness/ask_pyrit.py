"""PyRIT: its OpenAIChatTarget on every record, pictures as files; a refusal of the server is its error `blocked`.

python ask_pyrit.py JOB.json RESULT.json
"""

import asyncio
import base64
import json
import sys
from importlib.metadata import version
from pathlib import Path

from pyrit.memory import CentralMemory, SQLiteMemory
from pyrit.models import Message, MessagePiece
from pyrit.prompt_target import OpenAIChatTarget


async def main() -> None:
    """Send the records, and count what came back."""
    job, work = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]).parent
    CentralMemory.set_memory_instance(SQLiteMemory(db_path=":memory:"))
    at = {"endpoint": job["url"], "api_key": job["key"], "model_name": job["model"]}
    target = OpenAIChatTarget(**at, temperature=0, max_completion_tokens=job["max_tokens"])
    answers, kinds = {}, []
    for number, record in enumerate(job["records"]):
        said = {"role": "user", "conversation_id": record["id"]}
        pieces = [MessagePiece(original_value=record["prompt"], **said)]
        if record["image"]:
            path = work / f"{number}.png"
            path.write_bytes(base64.b64decode(record["image"].split(",")[1]))
            pieces.insert(0, MessagePiece(original_value=str(path), original_value_data_type="image_path", **said))
        (reply,) = await target.send_prompt_async(message=Message(message_pieces=pieces))
        piece = reply.message_pieces[0]
        kinds.append(piece.response_error)
        blocked = piece.response_error == "blocked"  # it keeps no text then
        answers[record["id"]] = {"text": None if blocked else piece.converted_value, "refused": blocked}
    counted = ", ".join(f"{kinds.count(one)} × {one}" for one in sorted(set(kinds)))
    found = {"version": version("pyrit"), "answers": answers, "report": f"response errors {counted}"}
    Path(sys.argv[2]).write_text(json.dumps(found))


asyncio.run(main())
