"""Attacks for evaluation: adversarial pictures found by gradients, and what may happen to a picture on its way.

They find out what a defence is worth against somebody who tries, and against pictures that were turned, cut or
compressed. Nothing here writes harmful text: what an attack aims at are the responses of the records themselves, the
opening of an answer, or the absence of a refusal.

:mod:`.pixels` knows how a processor makes numbers of pixels, :mod:`.objectives` what is aimed at, :mod:`.pgd` how it is
reached; :mod:`.adversarial` and :mod:`.corrupted` write folders of records that ``eval`` answers like any others.
"""
