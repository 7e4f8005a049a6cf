"""One definition of each loss for every array library, right to the last digit that the input determines."""

from polyloss.calibration import brier, calibration_error
from polyloss.classification import sigmoid_cross_entropy, softmax_cross_entropy
from polyloss.contrastive import contrastive, contrastive_from_distance
from polyloss.evaluation import binary_log_loss, log_loss
from polyloss.gradients import grad, value_and_grad
from polyloss.metrics import accuracy, average_precision, f1, ndcg, roc_auc, top_k_accuracy
from polyloss.ranking import bpr, pairwise_hinge
from polyloss.retrieval import info_nce
from polyloss.transforms import log_sigmoid, log_softmax, logsumexp, sigmoid, softmax, softplus
from polyloss.version import __version__

__all__ = [
    "__version__",
    "accuracy",
    "average_precision",
    "binary_log_loss",
    "bpr",
    "brier",
    "calibration_error",
    "contrastive",
    "contrastive_from_distance",
    "f1",
    "grad",
    "info_nce",
    "log_loss",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "ndcg",
    "pairwise_hinge",
    "roc_auc",
    "sigmoid",
    "sigmoid_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "top_k_accuracy",
    "value_and_grad",
]
