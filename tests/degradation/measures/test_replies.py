"""What counts as a yes, a no or a choice of the batteries: refusals do not, right answers in other words do."""

import pytest

from frankenlm.degradation.measures.battery import score
from frankenlm.degradation.measures.graders import settled_choice
from frankenlm.degradation.prompts import load_prompts

ITEMS = {language: {prompt.id: prompt for prompt in load_prompts(f"battery_{language}")} for language in ("en", "es")}
NO_ANSWER = {
    "en": (
        "I'm sorry, but I have no information about that.",
        "I have no way of knowing.",
        "There's no way to tell.",
        "There is no knowing.",
        "The sentence gives no information.",
        "It is no secret that the nurse greeted the painter.",
        "I have no idea",
        "The answer is not yes.",
        "Yes\nNo\nYes\nNo",
        "No.\nYes.\nNo.",
        "No!\nYes!",
        "No\nYes\nThe words are said",
    ),
    "es": (
        "No entiendo la pregunta",
        "No sabemos",
        "No es posible saberlo.",
        "No está claro.",
        "No comprendo.",
        "No dice",
        "El texto no lo dice.",
        "Nos dice poco",
        "No me gusta",
        "No quiero responder.",
        "No puedo responder.",
        "No existe.",
        "No solo el pintor, también la enfermera",
        "Lo siento, no tengo esa información.",
        "No sé si persiguió al gato",
        "La respuesta no es sí.",
        "El perro se persiguió a sí mismo",
        "si no si no",
        "sí\nno\nsí\nno",
    ),
}


@pytest.mark.parametrize("language", NO_ANSWER)
def test_what_answers_no_question(language):
    """Whatever is asked: half of the questions have "no" for their key."""
    questions = [prompt for prompt in ITEMS[language].values() if prompt.choices and "no" in prompt.choices]
    assert len(questions) == 20
    for prompt in questions:
        settled = {text: settled_choice(text, prompt) for text in NO_ANSWER[language]}
        assert set(settled.values()) == {None}, (prompt.id, settled)


@pytest.mark.parametrize(
    ("language", "item", "completion", "expected"),
    [
        # denied behind "the answer is"
        ("es", 2, "La respuesta no es autobus, es tren.", "tren"),
        ("es", 2, "La palabra no es autobús sino tren.", "tren"),
        ("es", 3, "La respuesta no es no, es sí.", "sí"),
        ("en", 2, "The answer is not bus, it is train.", "train"),
        ("en", 3, "The answer is not no, it is yes.", "yes"),
        # a no of another thing, and then the answer
        ("en", 7, "There is no information in the text that says so. Yes.", "yes"),
        ("en", 7, "No problem! Yes, the nurse greeted the painter.", "yes"),
        ("en", 3, "There is no doubt: yes", "yes"),
        ("en", 3, "Yes, no cat was hurt.", "yes"),
        ("es", 3, "No cabe duda: sí", "sí"),
        ("es", 3, "Sí, no existe otro animal.", "sí"),
        ("es", 3, "Si, no era el gato quien perseguía", "sí"),
        ("es", 3, "Responde sí o no: sí", "sí"),
        ("es", 2, "Responde con una sola palabra: tren", "tren"),
        # plain ones
        ("en", 3, "No it did not.", "no"),
        ("en", 3, "No the dog did not chase the cat", "no"),
        ("en", 3, "The answer is no in this case.", "no"),
        ("en", 3, '"No" is right.', "no"),
        ("en", 3, "No and that is it", "no"),
        ("en", 3, "No 🙂", "no"),
        ("en", 35, "No bird sings here.", "no"),
        ("en", 3, "Yes, no", None),
        ("es", 3, "No lo persiguió", "no"),
        ("es", 3, "Creo que no", "no"),
        ("es", 3, "¡Que no!", "no"),
        ("es", 3, "Sí o no", None),
        ("es", 7, "no porque fue saludado", "no"),
        ("es", 7, "No lo hizo", "no"),
        ("es", 7, "No fue así.", "no"),
        ("es", 19, "No se lavó las manos primero", "no"),
        ("es", 31, "El plato no está a la izquierda", "no"),
        ("es", 67, "No vino.", "no"),
        ("es", 3, "El perro sí persiguió al gato.", "sí"),
        ("es", 3, "sí lo persiguió", "sí"),
        # what one denial denies, and what a semicolon parts
        ("es", 10, "La abeja hace miel, no la oveja ni la hormiga", "abeja"),
        ("en", 10, "The bee makes honey, not the ant or the beet.", "bee"),
        ("es", 18, "El desayuno es la comida de la mañana; la cena es la de la noche.", "desayuno"),
        ("en", 18, "Breakfast is eaten in the morning; supper is eaten in the evening.", "breakfast"),
        ("en", 2, "train; bus; rain; spoon", None),
        ("en", 2, "The words are train; bus; rain; spoon", None),
        ("en", 2, "train\nbus\nrain\nspoon", None),
        ("en", 2, '"train", "bus"', None),
        ("en", 2, "train, bus rain spoon", None),
        ("en", 2, "Train, bus is wrong.", "train"),
    ],
)
def test_what_is_settled_on(language, item, completion, expected):
    prompt = ITEMS[language][item]
    assert settled_choice(completion, prompt) == expected
    assert score(completion, prompt) == (expected == prompt.answer)
