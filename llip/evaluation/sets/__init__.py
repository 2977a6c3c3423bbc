"""Evaluation sets as others lay them out on disk or in a bucket.

| format | recognised by |
| --- | --- |
| ours | `evaluation.json` beside Parquet files |
| WebDataset of CLIP_benchmark | `<split>/nshards.txt` beside `0.tar`, `1.tar` … |
| SugarCrepe, ARO, Winoground | their lists of captions beside or above the images (`choices`) |
| WinoGAViL | `winogavil_dataset.csv` above its images (`associations`) |
| COCO, Karpathy's splits | `captions_val….json`, `dataset_coco.json`, `dataset_flickr30k.json` above their images |
| Parquet | `.parquet` files with `image` and `label` or captions |
| image folder | images in a folder for each class, or beside `.txt` files of the same name |

A format is a module with `roots` and `read`. It is asked before those below it, and what it takes they don't see.
"""

from llip.evaluation.sets.find import FoundSet, find_sets, read_set

__all__ = ["FoundSet", "find_sets", "read_set"]
