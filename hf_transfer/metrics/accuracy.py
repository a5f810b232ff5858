"""Share of rows predicted right."""

import datasets
import evaluate
import sklearn.metrics


class Accuracy(evaluate.Metric):
    """Accuracy of class indices: `compute(predictions=[0, 1], references=[0, 0])` gives `{"accuracy": 0.5}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions, references: class indices",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(sklearn.metrics.accuracy_score(references, predictions))}
