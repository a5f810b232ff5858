"""Precision, recall, F1 and number of rows of each class."""

import datasets
import evaluate
import sklearn.metrics


class PerClass(evaluate.Metric):
    """Scores by class: `{"per_class": [{"precision", "recall", "f1", "support"}, ...]}` in index order."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions, references: class indices; num_classes: how many there are",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int], num_classes: int) -> dict[str, list]:
        columns = sklearn.metrics.precision_recall_fscore_support(
            references, predictions, labels=range(num_classes), zero_division=0.0
        )
        names = ("precision", "recall", "f1", "support")
        return {"per_class": [dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)]}
