"""Mean over the classes of F1; a class that neither occurs nor is predicted does not count."""

import datasets
import evaluate
import sklearn.metrics


class MacroF1(evaluate.Metric):
    """Macro-averaged F1 of class indices, over the classes present in predictions or references."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions, references: class indices",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        score = sklearn.metrics.f1_score(references, predictions, average="macro", zero_division=0.0)
        return {"macro_f1": float(score)}
