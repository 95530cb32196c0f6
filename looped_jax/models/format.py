"""The number of what a model computes: raised whenever the same parameters give other numbers."""

# 1  All before there was a number.
# 2  Products of float32 models are float32 on accelerators too; ids that pad the vocabulary have no
#    probability; logits are float32 everywhere; Adafactor works on each layer's matrix; the cosine
#    schedule uses every update; text is evaluated on a random sample of rows.
MODEL_FORMAT = 2
