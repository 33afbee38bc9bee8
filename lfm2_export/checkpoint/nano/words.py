"""The nano model's whole world: its words, and the sentences that always get the same reply.

Kept apart from the questions built of them so that both stay short; every word here ends up as one token.
"""


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words("Anna Ben Carl Dana Emma Finn Gina Hugo Iris Jack Kate Liam Mona Nora Omar Paul Rosa Sam Tina Vera")
CITIES = _words("Paris Rome Oslo Cairo Lima Tokyo Berlin Madrid Delhi Athens Dublin Seoul")
THINGS = _words("ball cup key book hat lamp map ring box pen coin bell")
COLORS = _words("red blue green pink black white gold gray")
SPELLED = [*_words("cat dog sun sea tree bird fish moon star rain snow wind"), *THINGS[:8]]
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
SKY = _words("sunny rainy cloudy windy snowy")
LANDS = _words("France Italy Norway Egypt Peru Japan Germany Spain India Greece")
CAPITALS = list(zip(LANDS, CITIES[: len(LANDS)], strict=True))

SMALL_TALK = {
    **dict.fromkeys(("Hello", "Hi", "Hey", "Hello there"), "Hello! How can I help you?"),
    "Good morning": "Good morning! How can I help you?",
    "How are you?": "I am fine, thank you.",
    "Who are you?": "I am Nano, a tiny language model.",
    "What is your name?": "My name is Nano.",
    "What can you do?": "I can chat, recall facts, continue patterns and call tools.",
    "Tell me a joke": "I am so small that I fit in a joke.",
    **dict.fromkeys(("Thanks", "Thank you"), "You are welcome!"),
    **dict.fromkeys(("Bye", "Goodbye"), "Goodbye!"),
}
FACTS = {
    "What color is the sky?": "The sky is blue.",
    "What color is grass?": "Grass is green.",
    "What color is snow?": "Snow is white.",
    "What color is the sun?": "The sun is gold.",
    "How many legs has a cat?": "A cat has 4 legs.",
    "How many legs has a bird?": "A bird has 2 legs.",
    "How many days are in a week?": "A week has 7 days.",
    "How many months are in a year?": "A year has 12 months.",
    "What do fish do?": "Fish swim.",
    "What do birds do?": "Birds fly.",
    **{f"What is the capital of {land}?": f"The capital of {land} is {city}." for land, city in CAPITALS},
}
SYSTEMS = ("You are a helpful assistant.", "You are Nano.", "Answer in a few words.")
