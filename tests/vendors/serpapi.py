"""SerpApi, engine google: serpapi.com/search-api, /api-status-and-error-codes, /search-errors."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Asked, Reply, answer
from vendors.spec import KEY, Case, Spec

ROWS: list[dict[str, Any]] = [
    {
        "position": 1,
        "title": "Zurimo",
        "link": "https://towns.test/zurimo",
        "snippet": "a town",
        "displayed_link": "towns.test",
    },
    {"position": 2, "title": "No link"},
    {"position": 3, "title": None, "link": "http://towns.test/kadepi"},
    {"position": 4, "title": 1614, "link": "https://towns.test/1614", "snippet": ["a", "list"]},
    {"position": 5, "title": "Bad link", "link": "javascript:alert(1)", "snippet": "x"},
]
GIVES = [
    TextResult("https://towns.test/zurimo", "Zurimo", "a town", 1.0),
    TextResult("http://towns.test/kadepi", "", "", 1 / 2),
    TextResult("https://towns.test/1614", "1614", "", 1 / 3),
]


def error(code: int, words: str) -> Reply:
    return answer({"error": words}, code)


def search(state: str, **more: Any) -> dict[str, Any]:
    return {"search_metadata": {"id": "64c3", "status": state}, "search_parameters": {"engine": "google"}, **more}


def found(asked: Asked) -> Reply:
    if asked.path != "/search.json" or asked.method != "GET":
        return error(404, "The requested resource doesn't exist.")
    if asked.query.get("api_key") != KEY:
        return error(401, "Invalid API key. Your API key should be here: https://serpapi.com/manage-api-key")
    if not asked.query.get("q"):
        return error(400, "Missing query `q` parameter.")
    return answer(
        search("Success", search_information={"organic_results_state": "Results for exact spelling"}, organic_results=ROWS)
    )


NOTHING = "Google hasn't returned any results for this query."
SPEC = Spec(
    kind="text",
    backend="serpapi",
    key_name="SERPAPI_API_KEY",
    found=found,
    gives=GIVES,
    error=error,
    cases={
        "empty": Case(
            answer(search("Success", search_information={"organic_results_state": "Fully empty"}, error=NOTHING)),
            ToolStatus.OK,
            gives=[],
            billed=True,
        ),
        "empty, words alone": Case(answer({"error": NOTHING}), ToolStatus.OK, gives=[], billed=True),
        "only a knowledge graph": Case(
            answer(search("Success", knowledge_graph={"title": "Zurimo"})), ToolStatus.OK, gives=[], billed=True
        ),
        "bad request": Case(error(400, "Missing query `q` parameter."), ToolStatus.REFUSED),
        "bad key": Case(error(401, f"Invalid API key {KEY}"), ToolStatus.UPSTREAM_ERROR),
        "forbidden": Case(error(403, "The account associated with this API key was deleted"), ToolStatus.UPSTREAM_ERROR),
        "no such resource": Case(error(404, "not found"), ToolStatus.UPSTREAM_ERROR),
        "expired": Case(error(410, "The search expired"), ToolStatus.UPSTREAM_ERROR),
        "too many an hour": Case(error(429, "You have exceeded the hourly throughput limit"), ToolStatus.RATE_LIMITED, tries=3),
        "out of searches": Case(error(429, "Your account has run out of searches."), ToolStatus.BUDGET),
        "server error": Case(error(500, "Something went wrong"), ToolStatus.UPSTREAM_ERROR, tries=3),
        "no valid results": Case(
            answer(search("Error", error="We couldn't get valid results for this search. Please try again later."), 503),
            ToolStatus.UPSTREAM_ERROR,
            tries=3,
        ),
        "a failed search in a 200": Case(answer(search("Error", error="Proxy timeout")), ToolStatus.UPSTREAM_ERROR, tries=3),
        "an error in a 200": Case(answer({"error": "Unsupported `nowhere` location."}), ToolStatus.UPSTREAM_ERROR),
    },
    unlike=([], {}, "words", 5, {"organic_results": {}}, {"organic_results": 5}, {"search_metadata": {"status": "Processing"}}),
)
