"""An export behind the interface of OpenAI's chat completions, with the detector's verdict in the answer.

:mod:`.scheduler` decides which rows decode together and knows no HTTP and no model; :mod:`.engine` is the export it
drives; :mod:`.app` is the HTTP surface. The packages that this needs are the extra ``serve``; the core does without.
"""
