/**
 * The page of the API, rendered on the relay from the OpenAPI document. Swagger UI and its kin load
 * their script from somebody else's host, and a page of a relay loads nothing from anywhere else.
 */
import { html } from 'hono/html'
import { layout } from './layout.ts'
import type { Page } from './layout.ts'

/** What the page reads of an OpenAPI 3.1 document; all else is left alone. */
export interface ApiDocument {
  info: { title: string; version: string; description?: string }
  servers?: { url: string }[]
  tags?: { name: string; description?: string }[]
  paths?: Record<string, object>
  components?: { schemas?: Record<string, unknown> }
}

interface Operation {
  tags?: string[]
  operationId?: string
  summary?: string
  parameters?: Parameter[]
  requestBody?: Body
  responses?: Record<string, Body & { description?: string }>
}
interface Parameter {
  name: string
  in: string
  required?: boolean
  description?: string
  schema?: Schema
}
interface Body {
  content?: Record<string, { schema?: Schema }>
}
interface Schema {
  $ref?: string
  type?: string | string[]
  description?: string
  enum?: unknown[]
  format?: string
  items?: Schema
  properties?: Record<string, Schema>
  additionalProperties?: boolean | Schema
  required?: string[]
}

const METHODS = ['get', 'post', 'put', 'patch', 'delete'] as const

export function apiPage(api: ApiDocument): Page {
  const base = api.servers?.[0]?.url ?? ''
  const schemas = Object.entries(api.components?.schemas ?? {}) as [string, Schema][]
  return layout(
    `${api.info.title}: API`,
    html`<main>
<h1>${api.info.title}: API</h1>
<p class="quiet">Version ${api.info.version}. <a href="${base}/openapi.json">OpenAPI document</a></p>
<p>${api.info.description ?? ''}</p>
<p>Send a credential with every request:</p>
<pre>curl -H "Authorization: Bearer $SOTTO_API_KEY" https://RELAY${base}/names</pre>
${(api.tags ?? []).map((tag) => tagSection(tag, { api, base }))}
<h2>Shapes</h2>
${schemas.map(([name, schema]) => shapeSection(name, schema))}
</main>`,
  )
}

function tagSection(
  tag: { name: string; description?: string },
  { api, base }: { api: ApiDocument; base: string },
): Page {
  const operations: Page[] = []
  for (const [path, item] of Object.entries(api.paths ?? {})) {
    for (const method of METHODS) {
      const operation = (item as Record<string, Operation | undefined>)[method]
      if (operation?.tags?.includes(tag.name)) {
        operations.push(operationSection(`${base}${path}`, { method, operation }))
      }
    }
  }
  return html`<h2>${tag.name}</h2>
<p>${tag.description ?? ''}</p>
${operations}`
}

function operationSection(
  path: string,
  { method, operation }: { method: string; operation: Operation },
): Page {
  const body = schemaOf(operation.requestBody)
  return html`
    <section class="operation" id="${operation.operationId ?? ''}">
      <h3><code><span class="method">${method.toUpperCase()}</span>${path}</code></h3>
      <p>${operation.summary ?? ''}</p>
      <table>
    ${(operation.parameters ?? []).map(parameterRow)}
    ${body
      ? html`
        <tr>
          <th>body</th>
          <td>${typeOf(body)}</td>
        </tr>
      `
      : ''}
    ${Object.entries(operation.responses ?? {}).map(([status, answer]) => {
      const schema = schemaOf(answer)
      return html`
        <tr>
          <th>${status}</th>
          <td>${answer.description ?? ''} ${schema ? typeOf(schema) : ''}</td>
        </tr>
      `
    })}</table>
    </section>
  `
}

function parameterRow(parameter: Parameter): Page {
  const { name, required, schema = {} } = parameter
  const where = parameter.in === 'path' ? 'in the path' : `in the ${parameter.in}`
  return html`
    <tr>
      <th><code>${name}</code></th>
      <td>${typeOf(schema)} ${where}${required ? '' : ', optional'}. ${parameter.description ??
        schema.description ?? ''}</td>
    </tr>
  `
}

function shapeSection(name: string, schema: Schema): Page {
  return html`<h3 id="${name}">${name}</h3>
<p>${schema.description ?? ''}</p>
<table>
${
    Object.entries(schema.properties ?? {}).map(([field, of]) => {
      const optional = schema.required?.includes(field) ? '' : ', optional'
      return html`
        <tr>
          <th><code>${field}</code></th>
          <td>${typeOf(of)}${optional}. ${of.description ?? ''}</td>
        </tr>
      `
    })
  }</table>`
}

function schemaOf(body: Body | undefined): Schema | undefined {
  return body?.content?.['application/json']?.schema
}

/** A schema in a few words; what has a name is a link to its shape. */
function typeOf(schema: Schema, depth = 0): Page {
  if (schema.$ref) {
    const name = schema.$ref.split('/').at(-1)!
    return html`<a href="#${name}">${name}</a>`
  }
  if (schema.enum) {
    return html`${schema.enum.map((value, i) => html`${i > 0 ? ' or ' : ''}<code>${value}</code>`)}`
  }
  if (depth < 4 && schema.items) return html`list of ${typeOf(schema.items, depth + 1)}`
  if (depth < 4 && schema.properties) {
    return html`{ ${
      Object.entries(schema.properties).map(([field, of], i) =>
        html`${i > 0 ? ', ' : ''}<code>${field}</code>: ${typeOf(of, depth + 1)}`
      )
    } }`
  }
  const type = Array.isArray(schema.type) ? schema.type.join(' or ') : schema.type ?? 'any'
  return html`${schema.format === 'date-time' ? 'time' : type}`
}
