"""Asks one question with the OpenAI SDK's Responses call and prints the answer text alone.

The client key comes from POOLGATE_KEY. Retries are off unless asked for, so that a failure which the gateway should
have hidden ends the script. A stream without its last event counts as a failure: the SDK itself
would pass the shorter answer off as complete.
"""

import argparse
import os
import sys

from openai import OpenAI


def streamed(client, arguments):
    ended = False
    for event in client.responses.create(
        model=arguments.model, input=arguments.prompt, stream=True
    ):
        if event.type == "response.output_text.delta":
            yield event.delta
        ended = event.type == "response.completed"
    if not ended:
        sys.exit("the stream ended without response.completed")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--retries", type=int, default=0)
    arguments = parser.parse_args()
    client = OpenAI(
        base_url=arguments.base_url, api_key=os.environ["POOLGATE_KEY"], max_retries=arguments.retries, timeout=45
    )
    if arguments.stream:
        print("".join(streamed(client, arguments)))
    else:
        answer = client.responses.create(model=arguments.model, input=arguments.prompt)
        print(answer.output_text)


main()
