"""The vocabulary of the micro data, as lists of English words.

The lists are short on purpose, because a backbone of one million parameters must learn every word
in minutes of pretraining.
"""

WOMEN = """
anna bella clara diana ella fiona grace helen irene julia karen laura maria nora olga paula rosa
sarah tina wendy
""".split()
MEN = """
alan brian carl david edgar frank george henry ivan jack kevin leo martin noah oscar peter quinn
robert samuel victor
""".split()
SURNAMES = """
adams baker carter dixon evans fisher grant harris irving jordan keller lawson mason nolan owens
palmer quigley reed sutton turner underwood vance walsh young abbott burke cole dalton ellis forbes
gibson hayes ingram jensen knight lane moss norton parker rhodes
""".split()
TOWNS = """
ashford bristol calder dover eastham fairview glenwood harlow iverton jasper kendal linden marlow
newport oakham preston quarry redhill selby tilbury upton verona weston yarmouth alton brixham corby
denby elston fenwick
""".split()
MONTHS = """
january february march april may june july august september october november december
""".split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
YEARS = [str(year) for year in range(1921, 1981)]
AMOUNTS = [str(amount) for amount in range(12, 99)]

# People and their lives, for passages
JOBS = """
teacher doctor farmer lawyer painter pilot baker sailor miner tailor nurse clerk printer carpenter
judge poet
""".split()
SUBJECTS = """
physics music law history chemistry medicine botany geology drama french latin algebra
""".split()
BUILDINGS = """
museum theatre library school hospital bakery brewery chapel hotel mill bank tower market factory
""".split()
BUILDING_NAMES = """
royal old grand north south river castle garden hill lake summer winter iron silver
""".split()

# Reviews
PRODUCTS = """
kettle lamp radio camera jacket blender backpack phone tent chair printer speaker watch heater
toaster keyboard mattress bicycle helmet drill
""".split()
ASPECTS = """
battery screen handle sound colour fabric price delivery manual design size weight lid switch smell
packaging finish cable
""".split()
GOOD = """
great brilliant solid lovely reliable superb sturdy clever pleasant useful perfect splendid
wonderful fine good
""".split()
BAD = """
miserable poor weak nasty flimsy terrible noisy useless horrible faulty clumsy shoddy dreadful cheap
bad
""".split()

# News
VENUES = """
warehouse bridge harbour station stadium church cinema garage bakery museum library school hospital
factory
""".split()
ANIMALS = "dog cat pony goat fox crow swan seal".split()
