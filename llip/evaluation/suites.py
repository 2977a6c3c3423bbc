"""Collections of zero-shot tasks as papers average them, each task with its own metric.

`llip`: the 22 tasks of Llip's means, taken to be those of MetaCLIP (Xu et al., ICLR 2024) less ImageNet, which has its
own column, and less UCF101, Kinetics700 and Hateful Memes; by mean accuracy per class where CLIP's protocol says so.
`datacomp`: the 38 tasks of DataComp (Gadre et al., NeurIPS 2023, table 5 and appendix), with its groups.

A task is found by the name of its set, as CLIP_benchmark and DataComp name their folders of tars.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from llip.evaluation.metrics import Metric

AROUND = re.compile(r"^(wds_)?((vtab|fairness|wilds|retrieval|misc)-)?|_test$")
"""Beginnings and ends of folder names that are no part of the task's name."""
Names = tuple[str, ...]
TOP1: Names = ("top1",)
PER_CLASS: Names = ("mean_per_class",)
RETRIEVAL: Names = ("text_to_image_r1", "image_to_text_r1")
WORST: Names = ("worst_group_top1",)
WORST_OF_5: Names = ("worst_group_top5",)
SHIFTS = ("imagenet_sketch", "imagenetv2", "imagenet-a", "imagenet-o", "imagenet-r", "objectnet")
ALIASES = {
    "mscoco_captions": "mscoco_2014_5k_test_image_text_retrieval",
    "mscoco": "mscoco_2014_5k_test_image_text_retrieval",
    "flickr_1k_test_image_text_retrieval": "flickr30k",
}

FINE = dict.fromkeys(("caltech101", "fgvc_aircraft", "flowers", "pets"), PER_CLASS)
LLIP = dict.fromkeys(
    (
        *("food101", "cifar10", "cifar100", "cub", "sun397", "cars", "fgvc_aircraft", "dtd", "pets", "caltech101"),
        *("flowers", "mnist", "fer2013", "stl10", "eurosat", "resisc45", "gtsrb", "kitti_closest_vehicle_distance"),
        *("country211", "pcam", "clevr_count_all", "renderedsst2"),
    ),
    TOP1,
)
VTAB = (
    *("caltech101", "cifar100", "clevr_count_all", "clevr_closest_object_distance", "dtd", "eurosat"),
    *("kitti_closest_vehicle_distance", "flowers", "pets", "pcam", "resisc45", "svhn", "sun397"),
)
OTHERS = (
    *("cifar10", "country211", "fgvc_aircraft", "food101", "gtsrb", "imagenet1k", "mnist", "voc2007", "renderedsst2"),
    *("cars", "stl10", "camelyon17"),
)
DATACOMP = (
    dict.fromkeys((*OTHERS, *SHIFTS, *VTAB), TOP1)
    | dict.fromkeys(("flickr30k", "mscoco_2014_5k_test_image_text_retrieval"), RETRIEVAL)
    | {"winogavil": ("jaccard_of_10_and_more",), "iwildcam": ("macro_f1",)}
    | {"fmow": WORST, "dollar_street": WORST_OF_5, "geode": WORST}
)


@dataclass(frozen=True)
class Suite:
    """Tasks with the metrics whose mean is their score, and groups of them."""

    title: str
    tasks: Mapping[str, Sequence[str]]
    groups: Mapping[str, Sequence[str]]


SUITES = {
    "llip": Suite("Llip's 22 tasks", LLIP | FINE, {}),
    "datacomp": Suite(
        "DataComp's 38 tasks",
        DATACOMP | FINE,
        {
            "ImageNet": ("imagenet1k",),
            "ImageNet distribution shifts": SHIFTS,
            "VTAB": VTAB,
            "Retrieval": ("flickr30k", "mscoco_2014_5k_test_image_text_retrieval", "winogavil"),
        },
    ),
}


def task_of(name: str) -> str:
    """The task of a set, by its name."""
    found = AROUND.sub("", name)
    return ALIASES.get(found, found)


def by_task(sets: Iterable[str]) -> dict[str, str]:
    """Names of sets by their task. Raises ValueError where two sets are of one task."""
    found: dict[str, str] = {}
    for name in sets:
        if (other := found.setdefault(task_of(name), name)) != name:
            raise ValueError(f"{other} and {name} are both sets of the task {task_of(name)}; leave one out")
    return found


@dataclass(frozen=True)
class Results:
    """Results of an evaluation on a suite."""

    suite: Suite
    scores: Mapping[str, Metric]
    """Score of each task. A mean of several metrics has no interval."""
    missing: Mapping[str, str]
    """Tasks without a score, and why."""

    @classmethod
    def of(cls, suite: Suite, metrics: Mapping[str, Metric]) -> "Results":
        """From metrics `<set>/<metric>`. Raises ValueError where two sets are of one task."""
        sets = by_task(metric.split("/")[0] for metric in metrics)
        scores, missing = {}, {}
        for task, wanted in suite.tasks.items():
            found = [metrics[n] for m in wanted if (n := f"{sets.get(task)}/{m}") in metrics]
            if task not in sets:
                missing[task] = "no such set"
            elif len(found) < len(wanted):
                missing[task] = f"{sets[task]} gave no {' and no '.join(wanted)}"
            else:
                several = Metric(mean(m.value for m in found), mean(m.chance for m in found))
                scores[task] = found[0] if len(found) == 1 else several
        return cls(suite, scores, missing)

    def mean(self, tasks: Sequence[str]) -> tuple[float | None, int]:
        """Mean score of the tasks that have one, and how many these are."""
        found = [self.scores[task].value for task in tasks if task in self.scores]
        return (mean(found) if found else None), len(found)

    def markdown(self, references: Mapping[str, float]) -> str:
        """Tables of tasks, of means over groups, of effective robustness where it is given, and of missing tasks."""
        lines = [f"## {self.suite.title}", "", "| task | metric | score | chance | 95 % interval |"]
        lines += ["| --- | --- | ---: | ---: | ---: |"]
        for task, metric in self.scores.items():
            wanted = " and ".join(self.suite.tasks[task])
            lines.append(f"| {task} | {wanted} | {metric.value:.3f} | {metric.chance:.3f} | {metric.interval} |")
        lines += ["", "| mean over | score | tasks |", "| --- | ---: | ---: |"]
        for group, tasks in {**self.suite.groups, "all": tuple(self.suite.tasks)}.items():
            value, count = self.mean(tasks)
            score = "–" if value is None else f"{value:.3f}"
            lines.append(f"| {group} | {score} | {count} of {len(tasks)} |")
        lines += ["", *self._effective(references)]
        if self.missing:
            lines += ["missing: " + "; ".join(f"{task} ({why})" for task, why in self.missing.items()), ""]
        return "\n".join(lines)

    def _effective(self, references: Mapping[str, float]) -> list[str]:
        given = [(task, references[task]) for task in self.scores if task in references]
        if not given:
            return []
        lines = ["| effective robustness | accuracy | expected | beyond |", "| --- | ---: | ---: | ---: |"]
        for task, expected in given:
            value = self.scores[task].value
            lines.append(f"| {task} | {value:.3f} | {expected:.3f} | {value - expected:+.3f} |")
        beyond = mean(self.scores[task].value - expected for task, expected in given)
        return [*lines, f"| mean | | | {beyond:+.3f} |", ""]
