"""The configuration: its machinery, the knobs, and the presets."""

from deepsum_jax.config.ground import ChangingGround as ChangingGround
from deepsum_jax.config.knobs import NORMALIZATIONS as NORMALIZATIONS
from deepsum_jax.config.knobs import Backend as Backend
from deepsum_jax.config.knobs import Compute as Compute
from deepsum_jax.config.knobs import DataConfig as DataConfig
from deepsum_jax.config.knobs import Hidden as Hidden
from deepsum_jax.config.knobs import ModelConfig as ModelConfig
from deepsum_jax.config.knobs import Normalization as Normalization
from deepsum_jax.config.knobs import SimulationConfig as SimulationConfig
from deepsum_jax.config.knobs import StageConfig as StageConfig
from deepsum_jax.config.knobs import TrainConfig as TrainConfig
from deepsum_jax.config.machinery import Section as Section
from deepsum_jax.config.machinery import Settings as Settings
from deepsum_jax.config.machinery import nearest as nearest
from deepsum_jax.config.machinery import override as override
from deepsum_jax.config.presets import PRESETS as PRESETS
from deepsum_jax.config.presets import preset as preset
