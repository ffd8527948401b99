"""Asks one question with the Anthropic SDK's messages call and prints the answer text alone.

The client key comes from POOLGATE_KEY. Retries are off unless asked for, so that a failure which the gateway should
have hidden ends the script. A stream without its last event counts as a failure: the SDK itself
would pass the shorter answer off as complete.
"""

import argparse
import os
import sys

from anthropic import Anthropic

MAX_TOKENS = 1024


def streamed(client, model, messages):
    ended = False
    with client.messages.stream(model=model, max_tokens=MAX_TOKENS, messages=messages) as events:
        for event in events:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                yield event.delta.text
            ended = event.type == "message_stop"
    if not ended:
        sys.exit("the stream ended without message_stop")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--retries", type=int, default=0)
    arguments = parser.parse_args()
    client = Anthropic(
        base_url=arguments.base_url, api_key=os.environ["POOLGATE_KEY"], max_retries=arguments.retries, timeout=45
    )
    messages = [{"role": "user", "content": arguments.prompt}]
    if arguments.stream:
        print("".join(streamed(client, arguments.model, messages)))
    else:
        answer = client.messages.create(
            model=arguments.model, max_tokens=MAX_TOKENS, messages=messages
        )
        print("".join(block.text for block in answer.content if block.type == "text"))


main()
