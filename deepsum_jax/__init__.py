"""deepsum_jax: multi-image super-resolution of satellite stacks, in JAX.

params = load_params("workdir")
image = predict(params, stack, masks)
"""

from deepsum_jax import losses as losses
from deepsum_jax import metrics as metrics
from deepsum_jax.checkpoint import Bundle as Bundle
from deepsum_jax.checkpoint import load_params as load_params
from deepsum_jax.checkpoint import save_params as save_params
from deepsum_jax.config import ModelConfig as ModelConfig
from deepsum_jax.config import Normalization as Normalization
from deepsum_jax.deepsum import DeepSUM as DeepSUM
from deepsum_jax.predict import Prediction as Prediction
from deepsum_jax.predict import predict as predict
from deepsum_jax.scene import Scene as Scene
