"""Tasks: what the rows ask of the model, and how its answers are scored."""

from edgezo.tasks.arrays import Arrays as Arrays
from edgezo.tasks.base import BaseExample as BaseExample
from edgezo.tasks.base import BaseTask as BaseTask
from edgezo.tasks.base import Example as Example
from edgezo.tasks.base import Part as Part
from edgezo.tasks.base import Task as Task
from edgezo.tasks.chat import Chat as Chat
from edgezo.tasks.choice import Choice as Choice
from edgezo.tasks.classify import Classify as Classify
from edgezo.tasks.generate import Generate as Generate
from edgezo.tasks.head import Head as Head
from edgezo.tasks.labels import Labels as Labels
from edgezo.tasks.labels import parse_label_words as parse_label_words
from edgezo.tasks.make import TASKS as TASKS
from edgezo.tasks.make import make_task as make_task
from edgezo.tasks.make import task_from_settings as task_from_settings
from edgezo.tasks.masked import Masked as Masked
from edgezo.tasks.of_model import read_data as read_data
from edgezo.tasks.of_model import task_of as task_of
from edgezo.tasks.of_model import task_of_run as task_of_run
from edgezo.tasks.prompts import Prompt as Prompt
from edgezo.tasks.prompts import load_prompt as load_prompt
from edgezo.tasks.text import Text as Text
