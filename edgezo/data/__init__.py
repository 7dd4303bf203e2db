"""Rows of JSONL files, and the order in which they form batches."""

from edgezo.data.batches import BatchPlan as BatchPlan
from edgezo.data.batches import eval_batches as eval_batches
from edgezo.data.rows import Row as Row
from edgezo.data.rows import Rows as Rows
from edgezo.data.rows import read_rows as read_rows
from edgezo.data.rows import rows_from as rows_from
