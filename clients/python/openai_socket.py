"""Asks on one WebSocket of the OpenAI SDK, then once more from where that answer left off, and prints both texts.

The client key comes from POOLGATE_KEY. An error, a close, or an event of a type that the SDK's contract does not have
ends the script.
"""

import os
import sys

from openai import OpenAI


def turn(connection, **arguments):
    connection.send({"type": "response.create", **arguments})
    for event in connection:
        if not event.type.startswith("response."):
            sys.exit(f"an event of type {event.type}: {event}")
        if event.type == "response.completed":
            return event.response
    sys.exit("the socket closed without response.completed")


def main():
    base_url, model, prompt = sys.argv[1:4]
    client = OpenAI(base_url=base_url, api_key=os.environ["POOLGATE_KEY"], max_retries=0)
    with client.responses.connect() as connection:
        first = turn(connection, model=model, input=prompt)
        second = turn(connection, model=model, input=prompt, previous_response_id=first.id)
        print(first.output_text, second.output_text, sep="\n")


main()
