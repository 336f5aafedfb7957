"""What the handlers of kopf share, from the start of the operator to its end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from finetune_operator.cluster.beginnings import Beginnings
from finetune_operator.cluster.caches import LostPods, WatchCaches
from finetune_operator.cluster.comparison import Comparison
from finetune_operator.cluster.freshness import Freshness
from finetune_operator.cluster.namespaces import Insights, WatchedNamespaces
from finetune_operator.cluster.work_queue import WorkQueue
from finetune_operator.controller import Key
from finetune_operator.settings.configuration import Configuration


@dataclass
class OperatorState:
    """Held by kopf's memo, which it hands to every handler."""

    configuration: Configuration
    insights: Insights | None = None
    """What kopf watches; None where somebody else runs kopf, and it watches what they say."""
    ready: asyncio.Event | None = None
    """Set by kopf when the operator has started; None where nobody waits for it."""
    failure: str | None = None
    """Why the start failed, for people."""
    freshness: Freshness = field(default_factory=Freshness)
    lost_pods: LostPods = field(default_factory=LostPods)
    caches: WatchCaches = field(default_factory=WatchCaches)
    beginnings: Beginnings = field(default_factory=Beginnings)
    comparison: Comparison = field(init=False)
    """Compares the caches with the cluster; it is there once the operator has started."""
    namespaces: WatchedNamespaces = field(init=False)
    """Where jobs are looked at; it is there once the operator has started."""
    queue: WorkQueue[Key] = field(init=False)
    """Jobs to reconcile; it is there once the operator has started."""
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Ends, in reverse order, what the start has begun: all of it, or as much as there is when it fails."""
