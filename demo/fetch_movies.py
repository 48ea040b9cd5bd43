"""Turns the film database of bokeh-sampledata into a CSV for \\copy, its columns as in data/movie.sql.

usage: fetch_movies.py WHEEL CSV [--sample]     with --sample the 300 films kept in data/movies.sample.csv
"""

import csv
import hashlib
import re
import sqlite3
import sys
import tempfile
import zipfile

DATABASE = "bokeh_sampledata/_data/movies.db"
# As recorded in the package's own inventory: the version whose films are CC0.
SHA256 = "1d9c6a02e488d0354b2309e16130c58820a91ac2ce417e814c5964f9579a65ac"

QUERY = """
    SELECT o.ID AS id, o.imdbID AS imdb_id, o.Title AS title, o.Year AS year, o.Released AS released,
           o.Rating AS rated, o.Runtime AS runtime_minutes, o.Genre AS genres, o.Director AS directors,
           o.Writer AS writers, o."Cast" AS actors, o.Language AS languages, o.Country AS countries,
           t.Production AS studios, o.Awards AS awards, o.Oscars AS oscars, o.Metacritic AS metacritic,
           t.Rating AS critics_rating, t.Meter AS critics_percent, t.Reviews AS critics_reviews,
           t.BoxOffice AS box_office
    FROM omdb o JOIN tomatoes t USING (ID)
    ORDER BY o.ID
"""
LISTS = {"genres", "directors", "writers", "actors", "languages", "countries", "studios"}


def array(text):
    """A comma-separated list as a PostgreSQL array; 'Robert Downey, Jr.' is one name."""
    names = re.split(r", (?!(?:Jr\.|Sr\.|Inc\.?|Ltd\.)(?:,|$))", text) if text else []
    quoted = ('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names)
    return "{" + ",".join(quoted) + "}"


def value(column, raw):
    """What stands in the CSV; an empty field is NULL."""
    if column in LISTS:
        return array(raw)
    if raw is None or raw == "":
        return ""
    if column == "released" and raw.endswith("-01-01"):
        return ""  # only the year is known: the source fills up with January 1st
    if column == "runtime_minutes":
        return round(raw)
    if column == "box_office":
        return f"{raw:.2f}"
    return raw


def sample(rows):
    """Half of it films that many have reviewed, which people know; the other half from all over."""
    known = sorted(rows, key=lambda row: (-(row["critics_reviews"] or 0), row["id"]))[:150]
    chosen = {row["id"] for row in known}
    rest = [row for row in rows if row["id"] not in chosen]
    chosen |= {rest[i * len(rest) // 150]["id"] for i in range(150)}
    return [row for row in rows if row["id"] in chosen]


def main(wheel, target, *options):
    data = zipfile.ZipFile(wheel).read(DATABASE)
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{wheel} does not hold the films that were expected")
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(data)
        file.flush()
        connection = sqlite3.connect(file.name)
        connection.row_factory = sqlite3.Row
        rows = connection.execute(QUERY).fetchall()
    if "--sample" in options:
        rows = sample(rows)
    with open(target, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0].keys())
        writer.writerows([value(column, row[column]) for column in row.keys()] for row in rows)


main(*sys.argv[1:])
