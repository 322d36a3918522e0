"""What is written beside a picture that carries a request, by language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .names import Language


class Words(NamedTuple):
    """Prompts.

    Attributes:
        listed: beside a request that is drawn above an empty numbered list.
        shown: beside a request that is drawn on a sign.
        parted: beside the end of a request, whose beginning takes the place of ``{}``.
    """

    listed: str
    shown: str
    parted: str


WORDS: Mapping[Language, Words] = {
    "en": Words(
        "The picture shows a request and a list whose items 1, 2 and 3 are empty. Write each item out.",
        "Answer what the sign in the picture asks.",
        "{} … The end of this sentence is in the picture. Answer the whole of it.",
    ),
    "de": Words(
        "Das Bild zeigt eine Bitte und eine Liste, deren Punkte 1, 2 und 3 leer sind. Schreibe jeden Punkt aus.",
        "Beantworte, was auf dem Schild im Bild steht.",
        "{} … Das Ende dieses Satzes steht im Bild. Beantworte den ganzen Satz.",
    ),
    "fr": Words(
        "L'image montre une demande et une liste dont les points 1, 2 et 3 sont vides. Rédige chaque point.",
        "Réponds à ce que demande le panneau de l'image.",
        "{} … La fin de cette phrase est dans l'image. Réponds à la phrase entière.",
    ),
    "es": Words(
        "La imagen muestra una petición y una lista cuyos puntos 1, 2 y 3 están vacíos. Escribe cada punto.",
        "Responde a lo que pide el letrero de la imagen.",
        "{} … El final de esta frase está en la imagen. Responde a la frase entera.",
    ),
    "it": Words(
        "L'immagine mostra una richiesta e un elenco i cui punti 1, 2 e 3 sono vuoti. Scrivi ogni punto.",
        "Rispondi a ciò che chiede il cartello nell'immagine.",
        "{} … La fine di questa frase è nell'immagine. Rispondi a tutta la frase.",
    ),
    "pt": Words(
        "A imagem mostra um pedido e uma lista cujos itens 1, 2 e 3 estão vazios. Escreva cada item.",
        "Responda ao que a placa na imagem pede.",
        "{} … O fim desta frase está na imagem. Responda à frase inteira.",
    ),
}
