/**
 * The rules of OpenAPI 3.1 that a document must keep, and a check of values against its schemas:
 * the parts of JSON Schema that our documents use, anything else being reported as a problem.
 */

export interface ApiDocument {
  openapi: string
  info: Record<string, unknown>
  paths: Record<string, Record<string, unknown>>
  components?: Record<string, Record<string, unknown>>
  [field: string]: unknown
}
type Fields = Record<string, unknown>

const METHODS = ['get', 'put', 'post', 'delete', 'options', 'head', 'patch', 'trace']
/** The fixed fields of each object, OpenAPI 3.1.0 §4.8. */
const FIELDS: Record<string, string> = {
  root:
    'openapi info jsonSchemaDialect servers paths webhooks components security tags externalDocs',
  info: 'title summary description termsOfService contact license version',
  operation:
    'tags summary description externalDocs operationId parameters requestBody responses callbacks deprecated security servers',
  parameter:
    'name in description required deprecated allowEmptyValue style explode allowReserved schema example examples content',
  body: 'description content required',
  response: 'description headers content links',
  media: 'schema example examples encoding',
  components:
    'schemas responses parameters examples requestBodies headers securitySchemes links callbacks pathItems',
}
/** Keywords of JSON Schema 2020-12 that we use; `nullable` is of OpenAPI 3.0 and means nothing. */
const KEYWORDS = new Set(
  ('$ref type properties required additionalProperties propertyNames items enum const pattern ' +
    'format minLength maxLength minItems maxItems minimum maximum description example examples')
    .split(' '),
)
const TYPES = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null']

/** What breaks the rules, one line each; empty when nothing does. */
export function documentProblems(document: ApiDocument): string[] {
  const problems: string[] = []
  const tell = (where: string, what: string): void => void problems.push(`${where}: ${what}`)
  const fixed = (where: string, kind: string, value: Fields): void => {
    const known = FIELDS[kind]!.split(' ')
    for (const field of Object.keys(value)) {
      if (!known.includes(field) && !field.startsWith('x-')) tell(where, `unknown field ${field}`)
    }
  }
  fixed('root', 'root', document)
  fixed('info', 'info', document.info)
  if (!/^3\.1\.\d+$/.test(document.openapi)) tell('openapi', document.openapi)
  for (const field of ['title', 'version']) {
    if (typeof document.info[field] !== 'string') tell('info', `no ${field}`)
  }
  const components = document.components ?? {}
  fixed('components', 'components', components)
  for (const group of Object.values(components)) {
    for (const name of Object.keys(group)) {
      if (!/^[a-zA-Z0-9._-]+$/.test(name)) tell('components', `name ${name}`)
    }
  }
  for (const [name, schema] of Object.entries(components['schemas'] ?? {})) {
    checkSchema(document, schema as Fields, (what) => tell(name, what))
  }
  const ids = new Set<unknown>()
  const shapes = new Set<string>()
  for (const [path, item] of Object.entries(document.paths)) {
    if (!path.startsWith('/')) tell(path, 'does not begin with a slash')
    const shape = path.replace(/\{[^}]*\}/g, '{}')
    if (shapes.has(shape)) tell(path, 'means the same as another path')
    shapes.add(shape)
    for (const [method, operation] of Object.entries(item) as [string, Fields][]) {
      const where = `${method} ${path}`
      if (!METHODS.includes(method)) tell(where, 'no method')
      fixed(where, 'operation', operation)
      if (ids.has(operation['operationId'])) tell(where, 'operationId twice')
      ids.add(operation['operationId'])
      checkOperation(document, { path, operation, fixed, tell: (what) => tell(where, what) })
    }
  }
  const known = components['securitySchemes'] ?? {}
  for (const requirement of (document['security'] ?? []) as Fields[]) {
    for (const name of Object.keys(requirement)) {
      if (!(name in known)) tell('security', `no scheme ${name}`)
    }
  }
  return problems
}

function checkOperation(
  document: ApiDocument,
  { path, operation, fixed, tell }: {
    path: string
    operation: Fields
    fixed(where: string, kind: string, value: Fields): void
    tell(what: string): void
  },
): void {
  const parameters = (operation['parameters'] ?? []) as Fields[]
  const seen = new Set<string>()
  for (const parameter of parameters) {
    const { name, in: where, required, schema, content } = parameter
    fixed(`parameter ${name}`, 'parameter', parameter)
    if (seen.has(`${where} ${name}`)) tell(`parameter ${name} twice`)
    seen.add(`${where} ${name}`)
    if (!['query', 'header', 'path', 'cookie'].includes(String(where))) tell(`${name} in ${where}`)
    if (where === 'path' && required !== true) tell(`path parameter ${name} is not required`)
    if ((schema === undefined) === (content === undefined)) tell(`${name}: schema or content`)
    if (schema) checkSchema(document, schema as Fields, (what) => tell(`${name}: ${what}`))
  }
  const templated = [...path.matchAll(/\{([^}]+)\}/g)].map(([, name]) => name)
  const given = parameters.filter((p) => p['in'] === 'path').map((p) => p['name'])
  if (templated.join() !== given.join()) tell(`templates ${templated}, parameters ${given}`)
  const responses = Object.entries((operation['responses'] ?? {}) as Fields) as [string, Fields][]
  if (!responses.some(([status]) => status.startsWith('2'))) tell('no response of success')
  const bodies: [string, string, Fields][] = responses.map(([s, r]) => [s, 'response', r])
  if (operation['requestBody']) {
    bodies.push(['body', 'body', operation['requestBody'] as Fields])
    if (!(operation['requestBody'] as Fields)['content']) tell('a body without content')
  }
  for (const [name, kind, body] of bodies) {
    fixed(name, kind, body)
    if (kind === 'response') {
      if (!/^([1-5](\d\d|XX)|default)$/.test(name)) tell(`status ${name}`)
      if (typeof body['description'] !== 'string') tell(`${name} has no description`)
    }
    for (const [type, media] of Object.entries((body['content'] ?? {}) as Fields)) {
      if (!/^[\w.+-]+\/[\w.+*-]+$/.test(type)) tell(`media type ${type}`)
      fixed(name, 'media', media as Fields)
      checkSchema(
        document,
        (media as Fields)['schema'] as Fields,
        (what) => tell(`${name}: ${what}`),
      )
    }
  }
}

function checkSchema(document: ApiDocument, schema: Fields, tell: (what: string) => void): void {
  for (const keyword of Object.keys(schema)) {
    if (!KEYWORDS.has(keyword)) tell(`unknown keyword ${keyword}`)
  }
  if (schema['$ref'] !== undefined && !resolve(document, schema)) tell(`dangling ${schema['$ref']}`)
  for (const type of [schema['type'] ?? []].flat()) {
    if (!TYPES.includes(String(type))) tell(`type ${type}`)
  }
  if (schema['pattern'] !== undefined) new RegExp(String(schema['pattern']), 'u')
  const properties = (schema['properties'] ?? {}) as Record<string, Fields>
  for (const name of (schema['required'] ?? []) as string[]) {
    if (!(name in properties)) tell(`required ${name} is no property`)
  }
  const inner = [schema['items'], schema['additionalProperties'], schema['propertyNames']]
  for (const each of [...Object.values(properties), ...inner]) {
    if (each !== null && typeof each === 'object') checkSchema(document, each as Fields, tell)
  }
}

function resolve(document: ApiDocument, schema: Fields): Fields | undefined {
  let found: Fields | undefined = schema
  for (let i = 0; i < 8 && found?.['$ref'] !== undefined; i++) {
    const name = /^#\/components\/schemas\/([\w.-]+)$/.exec(String(found['$ref']))?.[1]
    found = document.components?.['schemas']?.[name ?? ''] as Fields | undefined
  }
  return found
}

/** Where an answer is not what the document says of this method, path and status. */
export function schemaProblems(
  document: ApiDocument,
  answer: { method: string; path: string; status: number; body: unknown },
): string[] {
  const path = answer.path.split('?')[0]!
  const template = Object.keys(document.paths).find((each) =>
    new RegExp(`^${each.replace(/\{[^}]+\}/g, '[^/]+')}$`).test(path)
  )
  const operation = document.paths[template ?? '']?.[answer.method.toLowerCase()] as
    | { responses: Record<string, Fields> }
    | undefined
  if (!operation) return [`${answer.method} ${path} is not in the document`]
  const response = operation.responses[answer.status]
  if (!response) return [`${answer.method} ${path} has no ${answer.status}`]
  const content = response['content'] as Record<string, { schema: Fields }> | undefined
  if (!content) return answer.body === undefined ? [] : ['a body where there is none']
  const problems: string[] = []
  checkValue(document, content['application/json']!.schema, {
    value: answer.body,
    where: '$',
    tell: (what) => void problems.push(what),
  })
  return problems
}

function checkValue(
  document: ApiDocument,
  schema: Fields,
  { value, where, tell }: { value: unknown; where: string; tell(what: string): void },
): void {
  const of = resolve(document, schema)!
  const type = value === null
    ? 'null'
    : Array.isArray(value)
    ? 'array'
    : Number.isInteger(value)
    ? 'integer'
    : typeof value
  const types = [of['type'] ?? []].flat()
  if (
    types.length > 0 && !types.includes(type) && !(type === 'integer' && types.includes('number'))
  ) {
    return tell(`${where} is ${type}, expected ${types}`)
  }
  if (of['enum'] && !(of['enum'] as unknown[]).includes(value)) tell(`${where}: not in enum`)
  if (typeof value === 'string') {
    if (of['pattern'] && !new RegExp(String(of['pattern']), 'u').test(value)) {
      tell(`${where} ${value} does not match ${of['pattern']}`)
    }
    if (value.length > Number(of['maxLength'] ?? Infinity)) tell(`${where} is too long`)
    if (value.length < Number(of['minLength'] ?? 0)) tell(`${where} is too short`)
  }
  if (typeof value === 'number') {
    if (value > Number(of['maximum'] ?? Infinity)) tell(`${where} is too large`)
    if (value < Number(of['minimum'] ?? -Infinity)) tell(`${where} is too small`)
  }
  if (Array.isArray(value)) {
    for (const [i, item] of value.entries()) {
      checkValue(document, of['items'] as Fields, { value: item, where: `${where}[${i}]`, tell })
    }
  } else if (type === 'object') {
    const properties = (of['properties'] ?? {}) as Record<string, Fields>
    const extra = of['additionalProperties']
    for (const name of (of['required'] ?? []) as string[]) {
      if (!(name in (value as Fields))) tell(`${where}.${name} is missing`)
    }
    for (const [name, item] of Object.entries(value as Fields)) {
      const inner = properties[name] ?? (typeof extra === 'object' ? extra as Fields : undefined)
      if (inner) checkValue(document, inner, { value: item, where: `${where}.${name}`, tell })
      else if (extra === false) tell(`${where}.${name} is not expected`)
    }
  }
}
