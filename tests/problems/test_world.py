from nanotir.problems.world import documents


def test_every_fact_of_the_world_is_found_by_its_own_words(search):
    for fact in documents()[::7]:
        query = fact.split(" is ")[0].removeprefix("The ")
        assert search.run(query).output == fact


def test_no_fact_occurs_twice():
    assert len(set(documents())) == len(documents()) == 768
