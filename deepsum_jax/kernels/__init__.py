"""What is faster than the plain definitions of `model.ops`, on CPUs.

Delete this folder and everything still computes, slower. Every function takes the plain
definition as `plain`, for platforms where that is the faster one, and has derivatives of its own.
"""

from deepsum_jax.kernels.convolution import convolution as convolution
from deepsum_jax.kernels.convolution import convolution_norm_leaky as convolution_norm_leaky
from deepsum_jax.kernels.dynamic import dynamic_convolution as dynamic_convolution
from deepsum_jax.kernels.inpainting import fill_from_donors as fill_from_donors
from deepsum_jax.kernels.padding import reflect as reflect
