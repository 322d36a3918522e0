"""A picture, and messages as chat templates take them."""

import io

from PIL import Image

PICTURE = Image.effect_noise((40, 32), 60).convert("RGB")


def encoded(picture=PICTURE):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


# --- chat messages


def user(content):
    return {"role": "user", "content": content}


def image(picture=PICTURE, name="image"):
    return {"type": "image", name: picture}


def text(words):
    return {"type": "text", "text": words}


TALK = [user("what is this ?"), {"role": "assistant", "content": "a thing"}, user("is it dangerous ?")]
