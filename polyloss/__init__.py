"""One definition of each loss for every array library, right to the last digit that the input determines."""

from polyloss.classification import sigmoid_cross_entropy, softmax_cross_entropy
from polyloss.contrastive import contrastive, contrastive_from_distance
from polyloss.evaluation import binary_log_loss, log_loss
from polyloss.gradients import grad, value_and_grad
from polyloss.ranking import bpr, pairwise_hinge
from polyloss.retrieval import info_nce
from polyloss.transforms import log_sigmoid, log_softmax, logsumexp, sigmoid, softmax, softplus
from polyloss.version import __version__

__all__ = [
    "__version__",
    "binary_log_loss",
    "bpr",
    "contrastive",
    "contrastive_from_distance",
    "grad",
    "info_nce",
    "log_loss",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "pairwise_hinge",
    "sigmoid",
    "sigmoid_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "value_and_grad",
]
