"""Matching captions with metadata: `EntryMatcher`, its alphabets and index, the entry list, the pass over a pool."""

from pipelines.stages.match.matcher import EntryMatcher, refuse_repetition

__all__ = ["EntryMatcher", "refuse_repetition"]
