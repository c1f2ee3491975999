"""Everyday sentences that are nobody's records: where the features of any text are centred.

Written for this project; they say nothing of any client.
"""

from __future__ import annotations

from ..core.values import Records

_SENTENCES = (
    "what time does the shop open tomorrow",
    "please tell me how this works",
    "i would like to change my order",
    "can you help me with a problem",
    "where is the nearest station",
    "thank you very much for your answer",
    "how much does it cost in total",
    "set a reminder for the meeting on monday",
    "i did not understand the last question",
    "the weather was cold and it rained all day",
    "could you send me the document again",
    "my phone stopped working this morning",
    "which of the two is the better choice",
    "we are looking for a place to eat tonight",
    "the train was late and i missed my flight",
    "is there a way to cancel it",
    "read me the latest news",
    "i need a doctor as soon as possible",
    "how do i get from the airport to the city",
    "play something quiet please",
    "she asked whether the bill was paid",
    "what is the meaning of this word",
    "the children are at school until three",
    "turn off the lights in the kitchen",
    "how long does it take to cook rice",
    "i forgot my password",
    "tell me a story about the sea",
    "the report has to be ready by friday",
    "do you know who wrote this book",
    "add milk and bread to my list",
    "the car needs a new tire",
    "am i allowed to take a day off next week",
    "why was my request refused",
    "call my brother and say that i am late",
    "how many people live in this country",
    "that is not what i meant",
    "where did i put my keys",
    "the bank is closed on sundays",
    "give me an example that is easy to follow",
    "what should i do next",
)

RECORDS = Records(
    tuple(f"public-{i}" for i in range(len(_SENTENCES))),
    _SENTENCES,
    ("",) * len(_SENTENCES),
    ("",) * len(_SENTENCES),
    ("",) * len(_SENTENCES),
)
"""The sentences, without labels."""
