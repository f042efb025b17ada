"""What the processes of tests share by forking: imports that take seconds."""

from datasets import Dataset  # noqa: F401
from flwr_datasets.partitioner import IidPartitioner  # noqa: F401
from transformers import (  # noqa: F401
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import hiso.cli.app
import hiso.core.kernels.numba_backend
import hiso.run.launch  # noqa: F401
