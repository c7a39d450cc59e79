"""Made-up people, firms and addresses in real Swiss towns: what the simulated rows are made of."""

from typing import NamedTuple


class Town(NamedTuple):
    name: str
    postal_code: str
    language: str


TOWNS = (
    Town("Zürich", "8001", "de"),
    Town("Genève", "1201", "fr"),
    Town("Basel", "4001", "de"),
    Town("Lausanne", "1003", "fr"),
    Town("Bern", "3011", "de"),
    Town("Winterthur", "8400", "de"),
    Town("Luzern", "6003", "de"),
    Town("St. Gallen", "9000", "de"),
    Town("Lugano", "6900", "it"),
    Town("Biel/Bienne", "2502", "de"),
    Town("Thun", "3600", "de"),
    Town("Bellinzona", "6500", "it"),
    Town("Köniz", "3098", "de"),
    Town("Fribourg", "1700", "fr"),
    Town("Schaffhausen", "8200", "de"),
    Town("Chur", "7000", "de"),
    Town("Uster", "8610", "de"),
    Town("Sion", "1950", "fr"),
    Town("Neuchâtel", "2000", "fr"),
    Town("Zug", "6300", "de"),
    Town("Yverdon-les-Bains", "1400", "fr"),
    Town("Rapperswil", "8640", "de"),
    Town("Aarau", "5000", "de"),
    Town("Baden", "5400", "de"),
    Town("Frauenfeld", "8500", "de"),
    Town("Locarno", "6600", "it"),
    Town("Delémont", "2800", "fr"),
    Town("Solothurn", "4500", "de"),
    Town("Bulle", "1630", "fr"),
    Town("Davos", "7270", "de"),
)

FIRST_NAMES = {
    "de": ("Anna", "Beat", "Cécile", "Daniel", "Elsbeth", "Fritz", "Heidi", "Jürg", "Käthi", "Lukas", "Nina", "Reto"),
    "fr": ("Amélie", "Benoît", "Chloé", "François", "Gaëlle", "Hélène", "Jérôme", "Léa", "Noé", "Zoé"),
    "it": ("Alessia", "Carlo", "Elena", "Fabio", "Giulia", "Luca", "Niccolò", "Sofia"),
    "en": ("Alice", "George", "Mary", "Oliver", "Peter", "Sophie"),
}
LAST_NAMES = (
    "Müller", "Meier", "Schmid", "Keller", "Weber", "Huber", "Schneider", "Steiner", "Fischer", "Brunner",
    "Baumann", "Gerber", "Zürcher", "Favre", "Rochat", "Dubois", "Bernasconi", "Ferrari", "Rossi", "O'Brien",
    "Bühlmann", "Égli", "Jost", "Imboden", "Wyss", "Zbinden",
)  # fmt: skip
TRADES = (
    "Bäckerei",
    "Buchhandlung",
    "Garage",
    "Papeterie",
    "Velo",
    "Uhren",
    "Käserei",
    "Blumen",
    "Optik",
    "Schreinerei",
)
FORMS = ("AG", "GmbH", "& Söhne", "SA", "Sàrl")
STREETS = {
    "de": ("Bahnhofstrasse", "Hauptstrasse", "Dorfstrasse", "Seeweg", "Lindenallee", "Kirchgasse"),
    "fr": ("Rue de la Gare", "Avenue du Léman", "Chemin des Vignes", "Rue du Marché"),
    "it": ("Via Stazione", "Via Nassa", "Piazza Grande", "Via al Lago"),
}
