"""The grid that a user begins with: every key, with what it is for."""

TEMPLATE = """\
# What `safetykit compare --config THIS -o FOLDER` compares: models x defences x benchmarks x judges.
# Lines that begin with `# ` followed by a key are choices; take the mark away to make them.

title: Which defence for my model?

models:                       # a name of yours: what it is
  mild: reference:mild        # a checkpoint (folder or id), an export folder, or the address of a server
  # mine:
  #   path: ./my-vlm
  #   dtype: bfloat16         # device, dtype, device-map, max-memory, batch-size: as for other commands
  # exported:
  #   path: ./export          # an export holds its adapters: it is itself a defence ...
  #   baseline: mine          # ... of this model, and compared with it

defences:                     # `none`, the model by itself, is always there
  one-pass:
    fit: one-pass             # a method, fitted once a model and kept in FOLDER/adapters
    data: reference           # records with the splits fit and calibration
    settings: {fused-layer: 4}          # the options of `safetykit fit one-pass`
  # vlm-guard:
  #   fit: vlm-guard
  #   data: records/
  #   settings: {layers: 4, alpha: 2}   # the options of `safetykit fit vlm-guard`
  #   sweep: true             # choose the others on calibration records ...
  #   max-over-refusal: 0.1   # ... so that harmless requests about other things lose no more: of a method with a
  #   max-utility-loss: 0.1   # threshold or a sweep; also budget-by and confidence, as `safetykit fit` has them
  # mine:
  #   adapter: ./adapter      # one that is there; a list is a stack
  #   models: [mine]          # only for these models
  # stacked:
  #   stack:                  # each is fitted on the model as those before it made it
  #     - {fit: tga, data: captions.jsonl}
  #     - {fit: sasa, data: records/}
  # system-prompt:
  #   defence: system-prompt  # at inference time, no fit: system-prompt or ecso

benchmarks:                   # a name of yours: records
  reference:
    data: reference
    split: test
    limit: 60                 # at most so many, spread over carriers and labels
    # max-new-tokens: 64      # for these records

judges: [expected]            # the first decides; further ones stand beside it
max-new-tokens: 32
# seeds: [0, 1, 2]            # one fit each, of methods that draw at random
# choose-on: calibration      # answer those records, too, and choose there what is recommended (default: no)
budgets:                      # what a defence may cost against none, and still be recommended
  over-refusal: 0.02
  utility-loss: 0.02
"""
