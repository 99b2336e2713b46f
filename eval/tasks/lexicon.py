"""The words of the generated tasks. Each is one token of witan-tiny where it follows a space; digits are too."""


def _words(text):
    return tuple(text.split())


NAMES = _words("""
    Ada Adam Alan Alice Amy Andy Anna Arthur Ben Beth Bill Bob Brian Carl Carol Chris Clara Colin Dan Dave Dean Diana Dora
    Doris Ed Ella Emma Eric Erin Eva Felix Fiona Frank Fred Gary Gina Grace Greg Hank Harry Helen Henry Hugo Ian Ida Iris
    Ivan Jack James Jane Jean Jill Jim Joan Joe John Judy Julia Karen Karl Kate Ken Kevin Lara Laura Leo Leon Linda Lisa
    Louis Lucy Luke Mara Maria Mark Martin Mary Max Mia Mike Molly Nancy Ned Nick Nina Nora Olga Oliver Oscar Otto Paul
    Paula Peter Phil Rachel Ralph Ray Rita Robert Rosa Rose Ruth Sam Sandra Sara Simon Sofia Sonia Steve Susan Tanya Ted
    Theo Thomas Tim Tina Tom Tony Vera Victor Walter Wendy Will Zoe
""")
TOWNS = _words("""
    Athens Berlin Boston Bristol Brussels Cairo Chicago Dallas Delhi Denver Dublin Florence Geneva Hamburg Havana Helsinki
    Houston Istanbul Kyoto Leeds Lima Lisbon London Madrid Milan Montreal Moscow Munich Nairobi Naples Oslo Oxford Paris
    Phoenix Porto Prague Quebec Riga Rome Seattle Seoul Sydney Tokyo Toronto Turin Venice Vienna Warsaw Zurich
""")
COLORS = _words("red blue green yellow black white brown gray orange pink purple gold silver")
ANIMALS = _words("""
    ant bear bee bird bull camel cat cow crab crow deer dog dove duck eagle fish fox frog goat goose hawk hen horse lamb
    lion mole monkey moose mouse mule owl ox panda pig rabbit rat raven seal shark sheep snake spider swan tiger toad
    turtle whale wolf zebra
""")
FOODS = _words("""
    apple bacon banana bean beef beer bread butter cake candy carrot cheese cherry chicken coffee corn cream egg fig flour
    garlic grape ham honey jam juice lemon melon milk nut oil olive onion pasta peach pear pepper pie plum potato rice
    salad salt sauce soup sugar tea tomato wheat wine
""")
THINGS = _words("""
    bag ball basket bed bell belt bike blanket boat book bottle bowl box brick bridge broom brush bucket button camera candle
    car card carpet chain chair clock coat coin comb cup curtain desk dish doll door dress drum engine fan fence flag
    flute fork glass glove guitar hammer hat helmet jacket jar kettle key knife ladder lamp letter lock map mask mirror
    motor nail needle net oven page paint paper pen pencil phone piano pillow pin pipe plate pot purse radio ring rope
    ruler sail saw scarf shelf shield shirt shoe shovel sink soap sock sofa spoon stamp statue stone stool stove string
    sword table tank tent ticket tie tool towel toy train truck tube vase violin wagon wallet watch wheel whistle window
    wire
""")
PLACES = _words("""
    attic bank barn beach cabin camp castle cave cellar church city corner farm field forest garden garage hall harbor hill
    home hospital hotel house island kitchen lake library market mill museum office palace park room river road school
    shed shop stable station store street temple theater tower town valley village yard
""")
ATTRIBUTES = _words("code number price age weight score rank level")  # of people and things; their values are numbers
ADJECTIVES = _words("""
    big small old new long short fast slow warm cold dark bright heavy light soft hard clean dirty quiet loud happy sad
    young tall round empty full strong weak rich poor sweet
""")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
LETTERS = _words("A B C D E F G H I J K L M N O P Q R S T U V W X Y Z")

# What else the sentences are made of.
CONNECTING = _words("""
    a about above animal will add added adds after again all also always an and another answer answers any are as ask asked asks at away back
    be because become becomes been before began begin begins behind below beside best better between both bring brings
    brought but buy buys bought by came can carry carries carried case cases change changed close closed color colors come
    comes context copy cost costs could count counts cut cuts day days did difference do does done down each early easy
    eat eats ate end ends equal evening every everyone example examples fact facts far feel felt few find finds first
    follow following follows food for form found friend friends from gave get gets give given gives go goes good got had
    half happened has have he hear heard help helped helps her here high him his hold holds how idea if in inside into is it
    item items its keep keeps kept kind knew know known knows last late later laugh laughed learn learned least left less
    let like liked likes line lines list lists little live lived lives look looked looks lost lot love loved loves made
    make makes man many match matches meaning meet meets mean means met minus money multiplied more morning most move moved much multiply music must
    name named names near need needs never next nice night no none not note nothing now numbers of off often on once one
    only open opened or order other our out over own owner part partner pass people person piece pieces place placed places
    plan play played plays please plus point put puts question questions quickly rain ran read ready reads record records remember repeat
    rest result reverse right rule run said same saw say says second see seen sees sell sells send sends sent set shared
    she show showed side sing sings sit sits slowly smile smiled snow so sold some someone song soon special stand start starts
    stay stayed stays step steps still stop stopped story subtract sum sun swap take taken takes talk talked tell tells text than
    thank thanks that the their them then there these they thing things think third this those thought three time times to
    today together told tomorrow too took total toward two under until up us use used uses value values variable
    variables very visit visited visits wait waited walk walked walks want wanted wants was water way we weather week well
    went were what when where which while who whole whose why wind with without woman word words work worked works worth would write
    written wrote year years yes yesterday yet you your
""")
# Words that begin a line or a sentence, and so follow a newline or a space.
OPENING = _words("""
    A After Add Both All An And Answer Are As At Because Before But Case Copy Count Do Does Each Every Example Examples Explain Find Follow Compute
    Fact First For From Give He Hello Here How I If In Input It Items Let List Look Multiply My No Note Now On One Once Only
    Output Please Question Questions Read Record Remember Repeat Reply Reverse Rule Say Set She Soon Sort Step Subtract Swap Take Tell Thank That
    The Then There These They This To Total Today Two Use Variables We What When Where Which Who Whose Why Write Yes
    Yesterday You
    a an answer in list of the user assistant system question
""")

KEYS = NAMES + ANIMALS + FOODS + THINGS + PLACES  # what records are about; without repetition
GROUPS = {"animals": ANIMALS, "foods": FOODS, "things": THINGS, "towns": TOWNS, "colors": COLORS, "names": NAMES}


def all_words():
    """Every word above once, in order: those that follow a space."""
    groups = (NAMES, TOWNS, COLORS, ANIMALS, FOODS, THINGS, PLACES, ATTRIBUTES, ADJECTIVES, DAYS, MONTHS, LETTERS)
    return tuple(dict.fromkeys(word for group in (*groups, tuple(GROUPS), CONNECTING, OPENING) for word in group))
