// Uses the API as a program in JavaScript does, with the openai package, and prints what it saw.
const OpenAI = require("openai");

async function main() {
  const client = new OpenAI({ maxRetries: 0 }); // OPENAI_BASE_URL and OPENAI_API_KEY say the rest
  const seen = {};
  const made = await client.conversations.create({
    metadata: { from: "node" },
    items: [{ role: "user", content: "0" }],
  });
  seen.made = [made.object, made.metadata.from];
  seen.retrieved = (await client.conversations.retrieve(made.id)).id === made.id;
  seen.updated = (await client.conversations.update(made.id, { metadata: { a: "b" } })).metadata;
  for (let start = 1; start < 41; start += 20) {
    const items = Array.from({ length: 20 }, (_, n) => ({
      type: "message", role: "user", content: String(start + n),
    }));
    await client.conversations.items.create(made.id, { items });
  }
  const page = await client.conversations.items.list(made.id, { order: "asc", limit: 15 });
  seen.page = [page.data.length, page.has_more, page.data[0].content[0].text];
  const next = await page.getNextPage();
  seen.next = [next.data.length, next.data[0].content[0].text];
  seen.all = [];
  for await (const item of client.conversations.items.list(made.id, { order: "asc", limit: 15 })) {
    seen.all.push(item.content[0].text);
  }
  const id = page.data[0].id;
  const item = await client.conversations.items.retrieve(id, { conversation_id: made.id });
  seen.item = [item.type, item.status, item.id === id];
  const after = await client.conversations.items.delete(id, { conversation_id: made.id });
  seen.item_deleted = after.id === made.id;
  seen.errors = [];
  const wrong = [
    () => client.conversations.items.delete(id, { conversation_id: made.id }),
    () => client.conversations.items.list(made.id, { limit: 101 }),
    () => client.conversations.items.list(made.id, { after: "msg_unknown" }),
    () => client.conversations.items.create(made.id, { items: [{ id: "x_1", role: "user", content: "" }] }),
    () => client.conversations.retrieve("conv_unknown"),
  ];
  for (const call of wrong) {
    try {
      await call();
      seen.errors.push("none");
    } catch (error) {
      seen.errors.push([error.constructor.name, error.status, error.code, error.param]);
    }
  }
  seen.deleted = await client.conversations.delete(made.id);
  seen.deleted.id = seen.deleted.id === made.id;
  console.log(JSON.stringify(seen));
}

main();
