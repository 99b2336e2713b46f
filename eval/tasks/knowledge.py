"""World knowledge, for any model: questions whose answers are not in the text before them.

What a model knows lies in its weights. So these tell what a long context, and losing entries of it, does to the rest: the
ability that KV compression is said to cost least (Liu et al., arXiv 2502.01941).
"""

from . import language
from .sample import Sample, Turn, ask_about

# Countries and capitals that have not changed for decades, and spell the same in most sources.
_CAPITALS = dict(pair.split(": ") for pair in """
Argentina: Buenos Aires; Australia: Canberra; Austria: Vienna; Belgium: Brussels; Brazil: Brasilia; Bulgaria: Sofia
Canada: Ottawa; Chile: Santiago; China: Beijing; Colombia: Bogota; Croatia: Zagreb; Cuba: Havana; Denmark: Copenhagen
Ecuador: Quito; Egypt: Cairo; Ethiopia: Addis Ababa; Finland: Helsinki; France: Paris; Germany: Berlin; Ghana: Accra
Greece: Athens; Hungary: Budapest; Iceland: Reykjavik; India: New Delhi; Iran: Tehran; Iraq: Baghdad; Ireland: Dublin
Italy: Rome; Jamaica: Kingston; Japan: Tokyo; Jordan: Amman; Kenya: Nairobi; Latvia: Riga; Lebanon: Beirut
Lithuania: Vilnius; Morocco: Rabat; Mexico: Mexico City; Mongolia: Ulaanbaatar; Nepal: Kathmandu; Norway: Oslo
Pakistan: Islamabad; Peru: Lima; Poland: Warsaw; Portugal: Lisbon; Romania: Bucharest; Russia: Moscow; Senegal: Dakar
Slovenia: Ljubljana; South Korea: Seoul; Spain: Madrid; Sweden: Stockholm; Syria: Damascus; Thailand: Bangkok
Tunisia: Tunis; Turkey: Ankara; Uganda: Kampala; Uruguay: Montevideo; Venezuela: Caracas; Vietnam: Hanoi; Zambia: Lusaka
""".replace("\n", "; ").strip("; ").split("; "))  # fmt: skip

_ATOMIC_NUMBERS = dict(pair.split(": ") for pair in """
hydrogen: 1; helium: 2; lithium: 3; carbon: 6; nitrogen: 7; oxygen: 8; fluorine: 9; neon: 10; sodium: 11; magnesium: 12
aluminium: 13; silicon: 14; phosphorus: 15; sulfur: 16; chlorine: 17; argon: 18; potassium: 19; calcium: 20; titanium: 22
chromium: 24; manganese: 25; iron: 26; cobalt: 27; nickel: 28; copper: 29; zinc: 30; silver: 47; tin: 50; iodine: 53
tungsten: 74; platinum: 78; gold: 79; mercury: 80; lead: 82; uranium: 92
""".replace("\n", "; ").strip("; ").split("; "))  # fmt: skip


def _about(variant, facts, question, scoring):
    def generate(rng, room):
        def turn(subject):
            return Turn(question.format(subject), facts[subject], (facts[subject],), scoring)

        longest = max(map(turn, facts), key=lambda one: room.count(one.question) + room.count(one.answer))
        reserve = room.reserve(room.count(longest.question) + room.count(longest.answer) + 16)
        document = language.join(rng, language.filler(rng, room, reserve))
        unsaid = [subject for subject, fact in facts.items() if fact not in document]
        return Sample("knowledge", variant, document, ask_about(rng, room, turn, unsaid))

    generate.__doc__ = f"Stories, and then: {question.format('...')}"
    return generate


VARIANTS = {
    "capitals": _about("capitals", _CAPITALS, "What is the capital of {}? Answer with the city only.", "contains"),
    "elements": _about("elements", _ATOMIC_NUMBERS, "What is the atomic number of {}? Answer with the number only.", "last"),
}
