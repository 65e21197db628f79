"""Vision-language models as pure functions of (config, params). Only this package imports flax.

config                     shapes as plain numbers
vlm                        init, encode_images, apply, measure, logits: the whole model
vision, projector          pictures -> features -> the decoder's stream
language, stack, layers    the decoder, its scanned layers, and what they are made of
measure                    activations, reduced inside the layer pass
attention, kernels         masks, positions and the cache; fused kernels
sequences                  forward passes over `[prompt | response]`
score_heads, guard_heads   heads for reward, cost and critics; for a guard
lora, revision, quantize   adapters; vectors added to activations; int8 kernels
trees                      parameter trees with and without a backbone of their own
"""
